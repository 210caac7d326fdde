"""Filters leave samples out of a conversion: the same for any number of jobs, counted, and part of what is resumed."""

from __future__ import annotations

import json
from pathlib import Path

import conversions
import pytest

EVEN = json.dumps({"name": "where", "column": "n", "op": "in", "value": list(range(0, 600, 2))})
LATE = json.dumps({"name": "where", "column": "n", "op": ">=", "value": 450})


@pytest.mark.parametrize("to", ["jsonl", "parquet", "mds", "webdataset", "tokens"])
def test_only_what_filters_keep_is_written(tmp_path: Path, to: str) -> None:
    samples = conversions.write_texts(tmp_path / "texts")
    words = [tmp_path / "texts", tmp_path / "out", "--to", to, "--jobs", 1, "--shard-bytes", "3KB", "--filter", EVEN]
    told = conversions.prepare(*words, *(["--tokenizer", "bytes"] if to == "tokens" else []), "--filter", LATE)
    kept = [sample for sample in samples if sample["n"] % 2 == 0 and sample["n"] >= 450]
    assert (told["samples"], told["filtered_out"], told["bad_samples"]) == (len(kept), 600 - len(kept), 0)
    read = conversions.read_back(tmp_path / "out")
    if to in ("jsonl", "parquet", "mds"):
        assert read == kept
    assert len(read) == len(kept)


def test_shards_of_filtered_samples_are_of_the_size_that_was_asked_for(tmp_path: Path) -> None:
    conversions.write_texts(tmp_path / "texts")
    words = (tmp_path / "texts", tmp_path / "out", "--to", "jsonl", "--compress", "none", "--jobs", 1)
    conversions.prepare(*words, "--shard-bytes", "4KB", "--filter", EVEN)
    sizes = [path.stat().st_size for path in (tmp_path / "out").glob("*.jsonl")]
    assert all(2000 < size < 6000 for size in sorted(sizes)[1:])


@pytest.mark.parametrize("to", ["parquet", "mds"])
def test_what_filters_keep_may_be_too_rare_for_the_rows_that_are_tried(tmp_path: Path, to: str) -> None:
    samples = conversions.write_texts(tmp_path / "texts", rows=5_000)
    rare = json.dumps({"name": "where", "column": "n", "op": "==", "value": 1_500})
    told = conversions.prepare(tmp_path / "texts", tmp_path / "out", "--to", to, "--jobs", 1, "--filter", rare)
    assert (told["samples"], told["filtered_out"]) == (1, 14_999)
    assert conversions.read_back(tmp_path / "out") == [samples[1_500]]


def test_jobs_change_nothing_and_another_filter_is_refused(tmp_path: Path) -> None:
    conversions.write_texts(tmp_path / "texts")
    words = ("--to", "jsonl", "--shard-bytes", "2KB")
    for jobs in (1, 3):
        conversions.prepare(tmp_path / "texts", tmp_path / str(jobs), *words, "--filter", LATE, "--jobs", jobs)
    assert conversions.files(tmp_path / "1") == conversions.files(tmp_path / "3")
    told = conversions.prepare(tmp_path / "texts", tmp_path / "1", *words, "--jobs", 1, "--filter", EVEN, code=1)
    assert "was begun with filters" in told["error"]


def test_filters_that_keep_nothing_fail_or_cannot_be_parsed_are_told(tmp_path: Path) -> None:
    conversions.write_texts(tmp_path / "texts")
    words = (tmp_path / "texts", tmp_path / "out", "--to", "jsonl", "--jobs", 1, "--filter")
    told = conversions.prepare(*words, '{"name": "where", "column": "x", "op": "==", "value": 1}', code=1)
    assert told["error"].startswith("1 bad sample, none is allowed; the first: ")
    assert "column 'x'" in told["error"]
    assert not (tmp_path / "out").exists()
    none = json.dumps({"name": "where", "column": "n", "op": "<", "value": 0})
    told = conversions.prepare(tmp_path / "texts", tmp_path / "none", *words[2:], none, code=1)
    assert told["error"] == f"no sample of {tmp_path / 'texts'} was left to write"
    assert conversions.prepare(*words, "{", code=2)["error"].startswith("--filter '{' is neither a name nor JSON")
    assert conversions.prepare(*words, "were", code=2)["hint"] == "did you mean 'where'?"
