"""What cannot be converted is told in one line that names the column, the row or the folder."""

from __future__ import annotations

import json
import shlex
import subprocess
from pathlib import Path
from typing import Any

import conversions
import corpora
import pytest

from iostack.prepare.named import build_writer

HOSTILE_KEYS = ["/etc/passwd", "../up", "a/../../b", "a.b", "", "__x__", "a\\b", "k\0"]


def _refused(tmp_path: Path, samples: list[Any], *words: object, code: int = 2) -> str:
    corpora.write_jsonl(tmp_path / "in" / "a.jsonl", samples)
    told = conversions.prepare(tmp_path / "in", tmp_path / "out", "--jobs", 1, *words, code=code)
    return str(told["error"])


@pytest.mark.parametrize(
    ("to", "samples", "error"),
    [
        ("mds", [{"x": None}], "column 'x' holds NoneType, which cannot be one column of MDS"),
        ("mds", [{"x": 1}, {"x": "one"}], "column 'x' holds str and int, which cannot be one column of MDS"),
        ("parquet", [{"x": 1}, {"x": {"a": 1}}], "column 'x' holds dict, int, which cannot be one column of Parquet: "),
        ("webdataset", [{"a/b": "x"}], "the column 'a/b' cannot be the name of a member of a tar archive"),
        ("webdataset", [{"n": 1, "n.json": 2}], "columns 'n' and 'n.json' would both be members named 'n.json'"),
        ("webdataset", [{"n": 1}, {"n": "x"}], "column 'n' holds str and values of another type"),
        ("tokens", [{"n": 1}], "samples without token ids need a tokenizer"),
    ],
)
def test_columns_that_a_format_cannot_hold(tmp_path: Path, to: str, samples: list[Any], error: str) -> None:
    assert _refused(tmp_path, samples, "--to", to).startswith(error)
    assert not (tmp_path / "out").exists()


def test_shards_of_no_bytes_are_refused(tmp_path: Path) -> None:
    error = _refused(tmp_path, [{"text": "x"}], "--to", "jsonl", "--shard-bytes", "0")
    assert error == "--shard-bytes 0: shards of no bytes"


def test_of_many_columns_some_are_named(tmp_path: Path) -> None:
    writer = build_writer("parquet", {})
    sink = writer.open(tmp_path, 0, writer.layout([{f"column{n}": n for n in range(1000)}], {}))
    (told,) = sink.write([{"other": 1}], [0])
    sink.close()
    assert str(told).endswith("column14, column15 and 984 more: choose with --columns")


def test_bytes_are_no_json(tmp_path: Path) -> None:
    corpora.write_tar(tmp_path / "in" / "a.tar", corpora.images(3))
    told = conversions.prepare(tmp_path / "in", tmp_path / "out", "--to", "jsonl", "--jobs", 1, code=2)
    assert told["error"].startswith("column 'jpg' holds bytes that JSON cannot hold: ")


def test_a_column_without_text_names_those_that_there_are(tmp_path: Path) -> None:
    error = _refused(tmp_path, [{"n": 1, "body": "x"}], "--to", "tokens", "--tokenizer", "bytes")
    assert error == "the source has no text in a column 'text'; there are: n (int), body (str)"


def test_rows_without_columns_cannot_be_a_table(tmp_path: Path) -> None:
    error = _refused(tmp_path, [{}, {}], "--to", "parquet")
    assert error == "samples without columns cannot be rows of Parquet"


def test_keys_that_would_escape_are_bad_samples(tmp_path: Path) -> None:
    writer = build_writer("webdataset", {})
    sink = writer.open(tmp_path, 0, writer.layout([{"text": "x"}], {}))
    samples = [{"__key__": key, "text": "x"} for key in ["good/key", *HOSTILE_KEYS, "good/key"]]
    first, *bad, twice = sink.write(samples, range(len(samples)))
    sink.close()
    assert first == {"__key__": "good/key", "text": b"x"}
    for key, error in zip(HOSTILE_KEYS, bad, strict=True):
        assert str(error) == f"the key {key!r} cannot name members of a tar archive: it escapes, or holds a dot"
    assert str(twice) == "two samples in a row have the key 'good/key': they would become one"


def test_bad_samples_are_left_out_up_to_a_number(tmp_path: Path) -> None:
    corpora.write_jsonl(tmp_path / "in" / "a.jsonl", samples := corpora.texts(100))
    lines = (tmp_path / "in" / "a.jsonl").read_text().splitlines()
    lines[10], lines[77] = "{", "[]"
    (tmp_path / "in" / "a.jsonl").write_text("\n".join(lines))
    words = (tmp_path / "in", tmp_path / "out", "--to", "parquet", "--shard-bytes", "600", "--jobs", 1)
    told = conversions.prepare(*words, "--max-bad-samples", 1, code=1)
    assert "bad samples, more than the 1 that are allowed; the first: " in told["error"]
    assert "a.jsonl: line 11: " in told["error"]
    told = conversions.prepare(*words, "--max-bad-samples", 2)
    assert (told["bad_samples"], told["samples"]) == (2, 98)
    assert conversions.read_back(tmp_path / "out") == [each for i, each in enumerate(samples) if i not in (10, 77)]
    assert "1 bad sample, none is allowed" in str(conversions.prepare(*words, code=1)["error"]).replace(
        "2 bad samples", "1 bad sample"
    )


def test_a_column_that_comes_late_is_a_bad_sample(tmp_path: Path) -> None:
    samples = [{"n": i} for i in range(9000)]
    samples[1100] = {"n": 1100, "late": 1}  # between the places of the trial
    error = _refused(tmp_path, samples, "--to", "parquet", code=1)
    assert "a.jsonl row 1100: the first samples have no column 'late'; they have n: choose with --columns" in error


def test_a_folder_with_files_of_others_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    error = _refused(tmp_path, corpora.texts(3), "--to", "jsonl", code=1)
    assert error == f"{tmp_path / 'out'} holds 1 files that iostack prepare did not make, such as mine"


def test_a_target_inside_its_source_is_refused(tmp_path: Path) -> None:
    corpora.write_jsonl(tmp_path / "in" / "a.jsonl", corpora.texts(3))
    told = conversions.prepare(tmp_path / "in", tmp_path / "in" / "out", "--to", "jsonl", "--jobs", 1, code=1)
    assert "lie in each other" in told["error"]


@pytest.mark.parametrize(
    ("words", "error", "hint"),
    [
        (["--to", "mdx"], "no plugin offers a writer named 'mdx'", "did you mean 'mds'?"),
        (["--to", "mds", "--compress", "zst"], "the writer 'mds' has no option 'compress'", "it takes none"),
        (["--to", "jsonl", "--compress", "lzma"], "text is not compressed as 'lzma'", "choose zst or none"),
        (["--to", "jsonl", "--engine", "rey"], "no plugin offers a engine named 'rey'", "did you mean 'ray'?"),
    ],
)
def test_unknown_names_and_options(tmp_path: Path, words: list[str], error: str, hint: str) -> None:
    corpora.write_jsonl(tmp_path / "in" / "a.jsonl", corpora.texts(3))
    told = conversions.prepare(tmp_path / "in", tmp_path / "out", *words, "--jobs", 1, code=2)
    assert told == {"error": error, "hint": hint}


def test_a_damaged_journal_is_told(tmp_path: Path) -> None:
    words = (tmp_path / "in", tmp_path / "out", "--to", "jsonl", "--jobs", 1)
    corpora.write_jsonl(tmp_path / "in" / "a.jsonl", corpora.texts(3))
    conversions.prepare(*words)
    (tmp_path / "out" / ".iostack" / "prepare.json").write_text("{")
    told = conversions.prepare(*words, code=1)
    assert "prepare.json is damaged" in told["error"]
    (tmp_path / "out" / ".iostack" / "prepare.json").write_text(json.dumps({"to": "jsonl", "pieces": "many"}))
    told = conversions.prepare(*words, "--overwrite", code=1)
    assert "prepare.json is damaged" in told["error"]


def test_a_file_that_cannot_be_written_is_told_and_leaves_nothing_torn(tmp_path: Path) -> None:
    conversions.write_texts(tmp_path / "in", shards=1, rows=20_000)
    words = f"{tmp_path / 'in'} {tmp_path / 'out'} --to tokens --tokenizer bytes --jobs 1 --shard-bytes 900KB"
    # Space that ends is the same to a program as a limit on the size of files, which needs no disk of its own.
    command = f"ulimit -f 640; {shlex.join(conversions.COMMAND)} {words}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert f"error: {tmp_path / 'out' / '.iostack' / 'staging'} cannot be written: File too large" in done.stderr
    assert "hint: free some space or check the permissions" in done.stderr
    assert not conversions.files(tmp_path / "out")
    assert conversions.prepare(*words.split())["samples"] == 20_000
