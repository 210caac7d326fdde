"""``iostack bench``: figures that add up, and one line for what is wrong."""

from __future__ import annotations

import gzip
import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import corpora
import numpy as np
import pytest
import torch
from http_store import serve

from iostack.bench.rounds import Speed
from iostack.bench.verdict import first_epoch_is_slower, judge
from iostack.cli import main
from iostack.stages import STAGES

COPIES = {"pin", "device"}
"""Stages that only a machine with a CUDA device has."""
FIGURES = {"samples_per_s", "mb_per_s", "wall_s", "cpu_s", "first_batch_s", "peak_rss_bytes"}


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    corpora.write_jsonl(tmp_path / "texts" / "a.jsonl", corpora.texts(200))
    return tmp_path / "texts"


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    corpora.write_tokens(tmp_path / "tokens" / "a", [[np.arange(5000).tolist()]])
    return tmp_path / "tokens"


def _json(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> Any:
    assert main(["bench", *map(str, arguments), "--alone-seconds", "0.01", "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return json.loads(captured.out)


def test_tokens_are_measured(tokens: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = _json(capsys, tokens, "--seq-len", "64", "--batch-size", "6", "--steps", "50")
    assert (facts["format"], facts["steps"], facts["batch_size"], facts["seq_len"]) == ("tokens", 50, 6, 64)
    assert all(facts[name] > 0 for name in FIGURES)
    assert facts["tokens_per_s"] == pytest.approx(64 * facts["samples_per_s"], rel=1e-3)
    assert facts["samples_per_s"] == pytest.approx(50 * 6 / facts["wall_s"], rel=0.02)
    batch_bytes = 6 * 65 * 8 + 6 + 6 * 8
    assert facts["mb_per_s"] == pytest.approx(50 * batch_bytes / facts["wall_s"] / 1e6, rel=0.02)
    assert {*facts["alone"]} - COPIES == {"bare read", "origin"}
    assert facts["held_back_by"] == "assemble"


@pytest.mark.parametrize("packing", ["split", "best_fit"])
def test_packed_documents_are_measured_with_their_boundaries(
    tokens: Path, capsys: pytest.CaptureFixture[str], packing: str
) -> None:
    facts = _json(capsys, tokens, "--seq-len", "64", "--batch-size", "6", "--steps", "20", "--packing", packing)
    batch_bytes = 6 * 65 * 8 + 6 + 6 * 8 + 6 * 64 * 5  # position_ids are int32, loss_mask bool
    assert facts["mb_per_s"] == pytest.approx(20 * batch_bytes / facts["wall_s"] / 1e6, rel=0.02)


def test_text_is_tokenised_and_measured(texts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = _json(capsys, texts, "--seq-len", "32", "--steps", "20", "--tokenizer", "bytes", "--text-column", "text")
    assert facts["tokens_per_s"] > 0
    assert set(facts["wait_s"]) == {*STAGES} - {"consumer"}
    assert sum(facts["wait_shares"].values()) == pytest.approx(1, abs=1e-3)
    assert sum(facts["wait_s"].values()) <= facts["wall_s"] + 1e-3
    assert {*facts["alone"]} - COPIES == {"bare read", "origin", "read", "decode"}
    assert all(speed["samples_per_s"] > 0 and speed["mb_per_s"] > 0 for speed in facts["alone"].values())


def test_whole_samples_have_no_tokens_but_bytes(texts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keep = json.dumps({"name": "keep", "columns": ["text"]})
    facts = _json(capsys, texts, "--steps", "25", "--batch-size", "8", "--transform", keep)
    assert facts["tokens_per_s"] is None
    all_texts = [len(sample["text"]) for sample in corpora.texts(200)]
    found = facts["mb_per_s"] * 1e6 * facts["wall_s"] - 25 * 8 * 9  # valid and sample_ids take 9 bytes a sample
    assert min(all_texts) * 200 < found < max(all_texts) * 200


def test_one_of_several_ranks_takes_its_share(tokens: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = _json(capsys, tokens, "--seq-len", "64", "--batch-size", "8", "--ranks", "4", "--steps", "30")
    assert facts["samples_per_s"] == pytest.approx(30 * 2 / facts["wall_s"], rel=0.02)


@pytest.mark.parametrize("option", ["--seconds", "--alone-seconds", "--step-ms"])
def test_what_is_no_time_is_refused(tokens: Path, capsys: pytest.CaptureFixture[str], option: str) -> None:
    for value in ("nan", "inf"):
        assert main(["bench", str(tokens), option, value]) == 2
        assert f"'{value}' is not a finite number" in capsys.readouterr().err


def test_seconds_bound_the_measurement(tokens: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = _json(capsys, tokens, "--seq-len", "64", "--seconds", "0.05")
    assert facts["steps"] > 0
    assert facts["wall_s"] >= 0.05


def test_bad_samples_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.jsonl").write_text('{"n": 1}\n{\n{"n": 2}\n')
    assert main(["bench", str(tmp_path), "--steps", "3", "--batch-size", "3", "--alone-seconds", "0", "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["bad_samples"] == 1


def test_the_table_says_what_json_says(tokens: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", str(tokens), "--seq-len", "64", "--steps", "5", "--alone-seconds", "0.01"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    names = [line[:12].strip() for line in captured.out.splitlines()]
    assert names == [
        "uri", "format", "first batch", "measured", "samples/s", "tokens/s", "MB/s", "peak memory", "waited for", "",
        "alone", "bare read", "origin", "", "held back by", "so",
    ]  # fmt: skip
    assert "5 batches in" in captured.out


def test_without_stages_alone_only_the_whole_is_measured(texts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", str(texts), "--steps", "5", "--alone-seconds", "0", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["alone"] == {}
    assert facts["simulated"] is None


def test_compressed_remote_shards_are_fetched_and_unpacked_alone(
    tmp_path: Path, texts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    packed = gzip.compress((texts / "a.jsonl").read_bytes())
    with serve({f"/c/{name}.jsonl.gz": packed for name in "ab"}) as store:
        facts = _json(capsys, f"{store.uri}/c/", "--steps", "5", "--cache-dir", tmp_path / "cache")
    assert {*facts["alone"]} - COPIES == {"bare read", "origin", "cache", "read", "assemble"}
    assert facts["alone"]["cache"]["mb_per_s"] > 0
    assert not [path for path in (tmp_path / "cache").rglob("*") if "bench" in path.name], "copies are thrown away"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: torch finds none")
def test_copies_to_the_device_are_measured_alone(tokens: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = _json(capsys, tokens, "--seq-len", "64", "--steps", "5")
    assert facts["alone"]["pin"]["mb_per_s"] > 0
    assert facts["alone"]["device"]["mb_per_s"] > 0


def test_simulated_steps_that_waited_are_counted(texts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = _json(capsys, texts, "--seconds", "0.2", "--step-ms", "10")
    simulated = facts["simulated"]
    assert simulated["step_ms"] == 10
    assert 0 < simulated["steps"] <= 20
    assert simulated["waited_share"] == pytest.approx(simulated["waited_steps"] / simulated["steps"], abs=1e-3)
    assert 0 <= simulated["wait_share"] <= 1


@pytest.mark.parametrize("kind", ["svg", "png"])
def test_the_picture_has_a_bar_for_each_stage(
    tmp_path: Path, texts: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / f"bench.{kind}"
    facts = _json(capsys, texts, "--steps", "5", "--picture", path)
    if kind == "svg":
        root = ElementTree.parse(path).getroot()
        words = {text.text for text in root.iter("{http://www.w3.org/2000/svg}text")}
        assert set(facts["alone"]) <= words
        assert any(str(text).startswith("the whole: ") for text in words)
    else:
        assert path.read_bytes().startswith(b"\x89PNG")


def test_a_picture_that_cannot_be_written_is_told(
    tmp_path: Path, texts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    for name, told in (("nowhere/a.svg", "cannot be written: no such folder"), ("a.gif", "name a .svg or .png file")):
        assert main(["bench", str(texts), "--picture", str(tmp_path / name)]) == 2
        assert told in capsys.readouterr().err


def test_the_trace_of_a_bench_is_one_list_of_events(
    tmp_path: Path, texts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _json(capsys, texts, "--steps", "5", "--trace", tmp_path / "trace.json")
    assert {"read", "assemble"} <= {event["name"] for event in json.loads((tmp_path / "trace.json").read_text())}


def test_the_stage_that_was_waited_for_most_holds_the_loader_back() -> None:
    speeds = {stage: Speed(100.0, 100, 1.0, 1.0, 4) for stage in STAGES}
    verdict = judge({"origin": 3.0, "decode": 1.0}, speeds, 90.0)
    assert verdict is not None
    assert (verdict.stage, verdict.share) == ("origin", 0.75)
    assert "storage is the limit" in verdict.advice
    handing_over = judge({"assemble": 1.0}, speeds, 10.0)
    assert handing_over is not None
    assert "10 times as fast" in handing_over.advice
    assert judge({"origin": 0.0}, speeds, 90.0) is None
    assert (
        first_epoch_is_slower(speeds, 500.0, is_remote=True)
        == "until all shards are cached, origin allows 100 samples/s"
    )
    assert first_epoch_is_slower(speeds, 500.0, is_remote=False) is None
    assert first_epoch_is_slower(speeds, 50.0, is_remote=True) is None


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["{}/nowhere"], 1, "there is no such file or folder"),
        (["{}", "--batch-size", "7", "--ranks", "2"], 2, "hint: use a batch size of 6 or 8"),
        (["{}", "--batch-size", "0"], 2, "--batch-size"),
        (["{}", "--seconds", "0"], 2, "--seconds"),
        (["{}", "--seq-len", "32", "--tokenizer", "byte"], 2, "did you mean 'bytes'?"),
        (["{}", "--transform", "keeps"], 2, "did you mean 'keep'?"),
        (["{}", "--transform", "{{x"], 2, "neither a name nor JSON"),
        (["{}", "--seq-len", "100000"], 2, "text shorter than one sequence: seq_len 100000 needs 100001 tokens"),
        (["{}", "--seq-len", "999999999999999"], 2, "more than there is memory"),
        (["{}", "--seq-len", str(10**20)], 2, "seq_len must be at most"),
        (["{}", "--format", "tokens"], 1, "no tokens shards"),
        (["{}", "--seq-len", "32", "--text-column", "body"], 2, "there is no column 'body'; the sample has n, text"),
    ],
)
def test_what_is_wrong_is_told_in_one_line_and_a_hint(
    texts: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, told: str
) -> None:
    assert main(["bench", *(argument.format(texts) for argument in arguments)]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert told in captured.err
    assert [line.split(":")[0] for line in captured.err.splitlines()] == ["error", "hint"]


def test_on_a_terminal_a_live_line_shows_and_stdout_stays_clean(tokens: Path) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", "import sys; from iostack.cli import main; sys.exit(main())"]
    command += ["bench", str(tokens), "--seq-len", "64", "--seconds", "1", "--alone-seconds", "0", "--json"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=theirs, env={**os.environ, "TERM": "xterm"}
    ) as process:
        os.close(theirs)
        out, shown = process.stdout, b""
        assert out is not None
        try:
            while chunk := os.read(ours, 65536):
                shown += chunk
        except OSError:  # the other end of the terminal is closed
            pass
        assert json.loads(out.read())["steps"] > 0
    os.close(ours)
    assert process.returncode == 0
    assert b"samples/s" in shown


def test_asking_for_help_imports_neither_torch_nor_rich() -> None:
    told = (
        "import sys; from iostack.cli import main; main(['bench', '--help']); print({'torch', 'rich'} & {*sys.modules})"
    )
    out = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True).stdout
    assert "Load batches of URI" in out
    assert out.endswith("set()\n")
