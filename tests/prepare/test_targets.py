"""Each target holds the samples of its source, as the format's own libraries read them."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import conversions
import corpora
import numpy as np
import pytest
import zstandard

import iostack


@pytest.fixture
def texts(tmp_path: Path) -> list[dict[str, Any]]:
    return conversions.write_texts(tmp_path / "texts")


def _megatron_documents(stem: Path) -> list[list[int]]:
    """Read a pair by the specification, apart from the code under test."""
    index, stream = stem.with_suffix(".idx").read_bytes(), stem.with_suffix(".bin").read_bytes()
    magic, version, code, sequences, marks = struct.unpack_from("<9sQBQQ", index)
    assert (magic, version, marks) == (b"MMIDIDX\x00\x00", 1, sequences + 1)
    dtype = np.dtype({8: "<u2", 4: "<i4"}[code])
    at = 34
    lengths = np.frombuffer(index, "<i4", sequences, at)
    offsets = np.frombuffer(index, "<i8", sequences, at + 4 * sequences)
    documents = np.frombuffer(index, "<i8", marks, at + 12 * sequences)
    assert len(index) == at + 12 * sequences + 8 * marks
    assert documents.tolist() == list(range(sequences + 1))
    return [
        np.frombuffer(stream, dtype, length, offset).tolist() for length, offset in zip(lengths, offsets, strict=True)
    ]


def test_tokens_are_the_tokenised_documents_each_with_its_end(tmp_path: Path, texts: list[dict[str, Any]]) -> None:
    words = (tmp_path / "texts", tmp_path / "out", "--to", "tokens", "--tokenizer", "bytes", "--shard-bytes", "9KB")
    told = conversions.prepare(*words, "--jobs", 1)
    expected = [[*sample["text"].encode(), 256] for sample in texts]
    stems = sorted((tmp_path / "out").glob("*.bin"))
    assert len(stems) == told["shards"] > 2
    assert [document for stem in stems for document in _megatron_documents(stem)] == expected
    assert [sample["tokens"].tolist() for sample in conversions.read_back(tmp_path / "out")] == expected
    assert told["tokens"] == sum(map(len, expected))


def test_tokens_of_a_large_vocabulary_are_int32(tmp_path: Path) -> None:
    corpora.write_tokens(tmp_path / "in" / "a", [[[1, 70_000]], [[2]], [[]]], "int32")
    conversions.prepare(tmp_path / "in", tmp_path / "out", "--to", "tokens", "--jobs", 1)
    assert _megatron_documents(tmp_path / "out" / "tokens-000000") == [[1, 70_000], [2], []]


def test_lines_are_frames_of_whole_lines(tmp_path: Path) -> None:
    samples = [{"text": f"{i} häß " + "x" * 50_000, "n": [i, None, {"a": i / 3}]} for i in range(60)]
    corpora.write_jsonl(tmp_path / "in" / "a.jsonl", samples)
    conversions.prepare(tmp_path / "in", tmp_path / "out", "--to", "jsonl", "--jobs", 1)
    data = (tmp_path / "out" / "part-000000.jsonl.zst").read_bytes()
    frames = []
    while data:
        frame = zstandard.ZstdDecompressor().decompressobj()
        frames.append(frame.decompress(data))
        data = frame.unused_data
    assert len(frames) == 3
    assert all(frame.endswith(b"\n") for frame in frames)
    assert [json.loads(line) for line in b"".join(frames).splitlines()] == samples
    assert conversions.read_back(tmp_path / "out") == samples


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset leaves its files open
@pytest.mark.parametrize("compress", ["none", "zst"])
def test_tars_decode_to_the_samples_with_webdataset(tmp_path: Path, compress: str) -> None:
    import webdataset

    samples = [{"text": f"text {i}", "title": "é", "n": i, "meta": {"a": [i]}, "__key__": f"d/k{i}"} for i in range(30)]
    corpora.write_jsonl(tmp_path / "in" / "a.jsonl", samples)
    words = (tmp_path / "in", tmp_path / "out", "--to", "webdataset", "--jobs", 1, "--compress", compress)
    conversions.prepare(*words)
    [shard] = (tmp_path / "out").glob("shard-*")
    if compress == "zst":
        assert shard.name == "shard-000000.tar.zst"
        plain = tmp_path / "plain.tar"
        with shard.open("rb") as source, plain.open("wb") as target:
            zstandard.ZstdDecompressor().copy_stream(source, target)
        shard = plain
    read = list(webdataset.WebDataset(str(shard), shardshuffle=False, empty_check=False).decode())
    names = {"text": "text", "title.txt": "title", "n.json": "n", "meta.json": "meta", "__key__": "__key__"}
    assert [{name: each[member] for member, name in names.items()} for each in read] == samples
    assert len(conversions.read_back(tmp_path / "out")) == 30


def test_tars_of_tars_are_the_same_samples(tmp_path: Path) -> None:
    members = corpora.images(40)
    corpora.write_tar(tmp_path / "in" / "a.tar", members)
    conversions.prepare(tmp_path / "in", tmp_path / "out", "--to", "webdataset", "--jobs", 1, "--shard-bytes", "30KB")
    assert len(list((tmp_path / "out").glob("*.tar"))) > 1
    assert conversions.read_back(tmp_path / "out") == corpora.grouped(members)


def test_columns_are_chosen_and_transformed(tmp_path: Path, texts: list[dict[str, Any]]) -> None:
    rename = json.dumps({"name": "rename", "columns": {"n": "number"}})
    words = (tmp_path / "texts", tmp_path / "out", "--to", "jsonl", "--columns", "number", "--transform", rename)
    conversions.prepare(*words, "--jobs", 1)
    assert conversions.read_back(tmp_path / "out") == [{"number": sample["n"]} for sample in texts]


def test_a_source_without_a_manifest_and_with_one_are_the_same(tmp_path: Path, texts: list[dict[str, Any]]) -> None:
    words = (tmp_path / "texts", tmp_path / "out", "--to", "jsonl", "--jobs", 1)
    conversions.prepare(*words)
    iostack_index = [*conversions.COMMAND[:-1], "index", str(tmp_path / "texts")]
    import subprocess

    subprocess.run(iostack_index, check=True, capture_output=True)
    assert conversions.prepare(*words)["pieces_made"] == 0
    with iostack.open_corpus(tmp_path / "out") as corpus:
        assert len(corpus) == len(texts)
