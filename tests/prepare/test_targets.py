"""Each target holds the samples of its source, as the format's own libraries read them."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import conversions
import corpora
import numpy as np
import peers
import pytest
import zstandard

import iostack
from iostack.corpus.index import build_manifest
from iostack.prepare.named import build_writer


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


def test_mds_is_what_mosaics_own_reader_gives(tmp_path: Path) -> None:
    samples: list[dict[str, Any]] = [
        {"text": f"häß {i}", "n": i - 3, "f": i / 3, "meta": {"a": [i, None]}, "ok": i % 2 == 0} for i in range(50)
    ]
    corpora.write_jsonl(tmp_path / "in" / "a.jsonl", samples)
    conversions.prepare(tmp_path / "in", tmp_path / "out", "--to", "mds", "--jobs", 1, "--shard-bytes", "1500")
    assert len(list((tmp_path / "out").glob("*.mds"))) > 2
    assert peers.mosaic_samples(tmp_path / "out") == samples
    assert conversions.read_back(tmp_path / "out") == samples


def test_arrays_and_bytes_in_mds_are_what_mosaics_own_reader_gives(tmp_path: Path) -> None:
    corpora.write_tokens(tmp_path / "in" / "a", [[[1, 2, 3]], [[70_000]]], "int32")
    conversions.prepare(tmp_path / "in", tmp_path / "out", "--to", "mds", "--jobs", 1)
    assert [each["tokens"].tolist() for each in peers.mosaic_samples(tmp_path / "out")] == [[1, 2, 3], [70_000]]
    members = corpora.images(20)
    corpora.write_tar(tmp_path / "tars" / "a.tar", members)
    conversions.prepare(tmp_path / "tars", tmp_path / "bytes", "--to", "mds", "--jobs", 1)
    assert peers.mosaic_samples(tmp_path / "bytes") == corpora.grouped(members)


def test_parquet_is_what_datasets_reads(tmp_path: Path) -> None:
    import datasets

    samples = [
        {"text": f"häß {i}", "n": i, "meta": {"a": [i, i + 1]}, "maybe": None if i % 3 else i / 2} for i in range(90)
    ]
    corpora.write_jsonl(tmp_path / "in" / "a.jsonl", samples)
    conversions.prepare(tmp_path / "in", tmp_path / "out", "--to", "parquet", "--jobs", 1, "--shard-bytes", "2KB")
    tables = sorted(map(str, (tmp_path / "out").glob("*.parquet")))
    assert len(tables) > 1
    read = datasets.Dataset.from_parquet(tables, cache_dir=str(tmp_path / "cache"))
    assert list(read) == samples
    assert list(conversions.read_back(tmp_path / "out")) == samples


def test_row_groups_of_large_tables_are_of_some_mib(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    writer = build_writer("parquet", {})
    random = np.random.default_rng(0)
    samples = [{"data": random.bytes(1 << 20)} for _ in range(40)]
    sink = writer.open(tmp_path, 0, writer.layout(samples[:1], {}))
    for start in range(0, 40, 5):
        sink.write(samples[start : start + 5], range(start, start + 5))
    sink.close()
    assert [pq.ParquetFile(tmp_path / "part-000000.parquet").metadata.row_group(i).num_rows for i in range(2)] == [
        20,
        20,
    ]


@pytest.mark.parametrize("to", ["mds", "parquet", "jsonl"])
def test_a_corpus_goes_to_another_format_and_back(tmp_path: Path, to: str) -> None:
    samples = conversions.write_texts(tmp_path / "texts")
    conversions.prepare(tmp_path / "texts", tmp_path / "there", "--to", to, "--jobs", 1, "--shard-bytes", "3KB")
    conversions.prepare(tmp_path / "there", tmp_path / "back", "--to", "jsonl", "--jobs", 1)
    assert conversions.read_back(tmp_path / "back") == samples


def test_training_knows_the_vocabulary_of_prepared_tokens_also_after_indexing(tmp_path: Path) -> None:
    conversions.write_texts(tmp_path / "texts")
    conversions.prepare(tmp_path / "texts", tmp_path / "out", "--to", "tokens", "--tokenizer", "bytes", "--jobs", 1)
    for _ in range(2):
        with iostack.open_corpus(tmp_path / "out") as corpus:
            loader = iostack.Loader(corpus, batch_size=2, seq_len=8)
            assert loader.vocab_size == 257
            loader.close()
        corpora.write_tokens(tmp_path / "out" / "more", [[[1, 2]]])
        build_manifest(tmp_path / "out")
