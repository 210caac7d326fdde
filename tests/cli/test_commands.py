"""``iostack inspect``, ``index`` and ``plugins`` as a user runs them, in a process of their own."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import corpora
import pytest
import zstandard

from iostack.cli import main
from iostack.registry import registry


def _run(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "import sys; from iostack.cli import main; sys.exit(main())", *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "NO_COLOR": "1", **environment},
        check=False,
    )


@pytest.fixture
def jsonl(tmp_path: Path) -> Path:
    corpora.write_jsonl(tmp_path / "corpus" / "a.jsonl", corpora.texts(10))
    plain = corpora.write_jsonl(tmp_path / "plain", corpora.texts(5, 10)).read_bytes()
    (tmp_path / "corpus" / "b.jsonl.zst").write_bytes(zstandard.compress(plain))
    (tmp_path / "corpus" / "README.md").write_text("read me")
    return tmp_path / "corpus"


def _json(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> Any:
    assert main([*map(str, arguments), "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return json.loads(captured.out)


def test_inspect_shows_jsonl(jsonl: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = _json(capsys, "inspect", jsonl)
    assert (facts["format"], facts["shards"], facts["samples"], facts["indexed"]) == ("jsonl", 2, 15, False)
    assert facts["bytes"] == sum(path.stat().st_size for path in jsonl.glob("*.jsonl*"))
    assert facts["columns"] == {"text": "str", "n": "int"}
    assert facts["first_sample"] == {"text": "'line 0 '", "n": "0"}
    assert facts["ignored"] == ["README.md"]


def test_inspect_shows_tar(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpora.write_tar(tmp_path / "a.tar", corpora.images(7))
    facts = _json(capsys, "inspect", tmp_path)
    assert (facts["format"], facts["samples"]) == ("webdataset", 7)
    assert facts["columns"] == {"__key__": "str", "jpg": "bytes", "json": "bytes"}


def test_inspect_shows_tokens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    documents = [[[5, 6, 7]], *corpora.documents(20)]
    corpora.write_tokens(tmp_path / "a", documents, "int32")
    facts = _json(capsys, "inspect", tmp_path)
    assert (facts["format"], facts["samples"], facts["tokens"]) == ("tokens", 21, len(corpora.flat(documents)))
    assert facts["columns"] == {"tokens": "int32"}
    assert facts["first_sample"] == {"tokens": "[5, 6, 7]"}


def test_inspect_prints_for_people(jsonl: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(jsonl)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "samples      15" in lines
    advice = "run iostack index URI, before a run: one started without it cannot resume after it"
    assert f"manifest     none: {advice}" in lines
    assert "  text  str       'line 0 '" in lines


def test_data_cannot_write_control_sequences_to_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpora.write_jsonl(tmp_path / "a.jsonl", [{"\x1b[2J": "\x1b]0;title\x07\x9b"}])
    assert main(["inspect", str(tmp_path)]) == 0
    assert not set(capsys.readouterr().out) & {"\x1b", "\x07", "\x9b"}


def test_a_large_corpus_without_a_manifest_is_not_counted(
    jsonl: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("iostack.cli.inspect._COUNT_UP_TO_BYTES", 10)
    assert _json(capsys, "inspect", jsonl)["samples"] is None
    assert main(["inspect", str(jsonl)]) == 0
    assert "samples      not counted yet: run iostack index URI" in capsys.readouterr().out


def test_index_writes_the_manifest_and_counts_only_what_changed(
    jsonl: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = _json(capsys, "index", jsonl)
    assert (facts["shards"], facts["counted"], facts["samples"]) == (2, 2, 15)
    assert Path(facts["manifest"]).is_file()
    assert main(["index", str(jsonl)]) == 0
    assert "2 jsonl shards (0 counted now), 15 samples" in capsys.readouterr().out
    assert _json(capsys, "inspect", jsonl)["indexed"] is True


def test_plugins_lists_what_is_installed(capsys: pytest.CaptureFixture[str]) -> None:
    found = {plugin["name"]: plugin for plugin in _json(capsys, "plugins")}
    assert found["jsonl"]["state"] == "loaded"
    assert found["jsonl"]["hooks"] == ["iostack_formats"]
    assert found["jsonl"]["distribution"] == "iostack"
    assert main(["plugins"]) == 0
    assert "NAME" in capsys.readouterr().out


def test_plugins_shows_what_is_broken_or_blocked() -> None:
    done = _run("plugins", IOSTACK_PLUGINS="no_such_module", IOSTACK_BLOCK="tokens")
    assert done.returncode == 0
    assert "ModuleNotFoundError: No module named 'no_such_module'" in done.stdout
    assert "blocked by IOSTACK_BLOCK" in done.stdout


def test_a_format_that_is_missing_blames_the_broken_plugin(tmp_path: Path) -> None:
    (tmp_path / "a.lance").write_bytes(b"?")
    done = _run("inspect", tmp_path, IOSTACK_PLUGINS="no_such_module")
    assert done.returncode == 1
    assert "broken plugins: no_such_module (ModuleNotFoundError" in done.stderr


def test_storage_options_are_passed_through(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpora.write_jsonl(tmp_path / "a.jsonl", corpora.texts(3))
    facts = _json(capsys, "inspect", "dir://", "-o", "target_protocol=file", "-o", f"path={tmp_path}")
    assert facts["samples"] == 3


def _bad_inputs(folder: Path) -> dict[str, tuple[Path, str, int]]:
    """Return what is wrong -> (URI, what the error says, exit code)."""

    def at(name: str) -> Path:
        (folder / name).mkdir()
        return folder / name

    lines = corpora.write_jsonl(folder / "lines", corpora.texts(1000)).read_bytes()
    cases: dict[str, tuple[Path, str, int]] = {"missing": (folder / "nowhere", "no such file or folder", 1)}
    cases["empty"] = at("empty"), "the folder is empty", 1
    mixed = at("mixed")
    corpora.write_jsonl(mixed / "a.jsonl", corpora.texts(1))
    corpora.write_tar(mixed / "a.tar", corpora.images(1))
    cases["mixed"] = mixed, "shards of several formats", 1
    unknown = at("unknown")
    (unknown / "a.docx").write_bytes(b"x")
    cases["unknown"] = unknown, "no known format among 1 objects (1 .docx)", 1
    truncated = at("truncated")
    os.truncate(corpora.write_tar(truncated / "a.tar", corpora.images(5)), 2000)
    cases["truncated tar"] = truncated, "a.tar: byte 1,536: the archive is truncated", 1
    bad_line = at("bad_line")
    (bad_line / "a.jsonl").write_bytes(b"{bad json\n")
    cases["bad JSON line"] = bad_line, "a.jsonl: line 1: Expecting property name", 1
    misfit = at("misfit")
    stream, _ = corpora.write_tokens(misfit / "a", corpora.documents(5))
    stream.write_bytes(stream.read_bytes() + b"xx")
    cases["idx that does not fit"] = misfit, "does not fit the .bin", 1
    escape = at("escape")
    corpora.write_tar(escape / "a.tar", [("../../etc/cron.d/x", b"")])
    cases["path that escapes"] = escape, "climbs out of its root", 1
    device = at("device")
    corpora.write_tar(device / "a.tar", [("aux.txt", b"")])
    cases["named like a device"] = device, "named like a device", 1
    node = at("node")
    with tarfile.open(node / "a.tar", "w") as archive:
        member = tarfile.TarInfo("zero.txt")
        member.type = tarfile.CHRTYPE
        archive.addfile(member)
    cases["device"] = node, "is a character device", 1
    cut = at("cut")
    (cut / "a.jsonl.gz").write_bytes(gzip.compress(lines)[:-100])
    cases["cut gzip"] = cut, "the gzip stream is truncated or damaged", 1
    return cases


def test_bad_input_is_one_line_a_hint_and_nothing_written(
    tmp_path: Path, cache_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    for name, (uri, said, code) in _bad_inputs(tmp_path).items():
        commands = ("inspect",) if name == "bad JSON line" else ("inspect", "index")
        for command in commands:
            assert main([command, str(uri)]) == code, name
            captured = capsys.readouterr()
            error, hint = captured.err.splitlines()
            assert error.startswith("error: ")
            assert said in error, name
            assert hint.startswith("hint: ")
            assert captured.out == ""
        assert not (uri / ".iostack").exists()
    assert not [path for path in cache_dir.rglob("*") if path.suffix in (".part", ".arrow", ".lock")]


def test_a_shard_that_shrank_since_indexing_is_named(jsonl: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["index", str(jsonl)]) == 0
    os.truncate(jsonl / "a.jsonl", 50)
    capsys.readouterr()
    assert main(["inspect", str(jsonl)]) == 1
    assert "a.jsonl shrank from" in capsys.readouterr().err


@pytest.fixture(autouse=True)
def _plugins_are_loaded() -> None:
    """Load them before a test fakes anything that they look at."""
    registry()
