"""Token shards: Megatron pairs of every dtype, and indexes that do not fit."""

from __future__ import annotations

import struct
from pathlib import Path

import corpora
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import iostack
from iostack.corpus.contracts import TokenShardReader
from iostack.corpus.manifest import SIDECAR, manifest_from_columns
from iostack.errors import CorpusError, FormatError, ShardError

HEADER_BYTES = 34


@pytest.mark.parametrize("with_modes", [False, True])
@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "uint16", "int32", "int64"])
def test_every_integer_dtype_is_read_document_by_document(tmp_path: Path, dtype: str, with_modes: bool) -> None:
    documents = corpora.documents(50)
    corpora.write_tokens(tmp_path / "a", documents, dtype, with_modes=with_modes)
    corpus = iostack.open_corpus(tmp_path)
    reader = corpus.open_shard(0)
    assert isinstance(reader, TokenShardReader)
    assert (reader.counts.samples, reader.counts.tokens) == (50, len(corpora.flat(documents)))
    assert reader.tokens.dtype == np.dtype(dtype)
    assert not reader.tokens.flags.writeable
    np.testing.assert_array_equal(reader.tokens, corpora.flat(documents))
    for row, sample in enumerate(reader.read(range(50))):
        np.testing.assert_array_equal(sample["tokens"], documents[row][0])


def test_a_document_of_several_sequences_is_one_sample(tmp_path: Path) -> None:
    documents = [[[1, 2], [3]], [], [[4], [], [5, 6]]]
    corpora.write_tokens(tmp_path / "a", documents)
    corpus = iostack.open_corpus(tmp_path)
    assert [sample["tokens"].tolist() for sample in corpus] == [[1, 2, 3], [], [4, 5, 6]]


def test_sequences_stand_for_documents_that_nobody_marked(tmp_path: Path) -> None:
    corpora.write_tokens(tmp_path / "a", [[[1, 2], [3]]], marks=[0])
    assert [sample["tokens"].tolist() for sample in iostack.open_corpus(tmp_path)] == [[1, 2], [3]]


def test_counts_need_no_manifest(tmp_path: Path) -> None:
    for name in "abc":
        corpora.write_tokens(tmp_path / name, corpora.documents(10, seed=ord(name)))
    manifest = iostack.open_corpus(tmp_path).manifest
    assert manifest.samples is not None
    assert manifest.samples.tolist() == [10, 10, 10]
    assert manifest.total_tokens == sum(len(corpora.flat(corpora.documents(10, seed=ord(name)))) for name in "abc")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_floats_are_refused(tmp_path: Path, dtype: str) -> None:
    corpora.write_tokens(tmp_path / "a", corpora.documents(3), dtype)
    with pytest.raises(ShardError, match=f"holds {dtype}, not token ids"):
        iostack.open_corpus(tmp_path)


@pytest.mark.parametrize(("missing", "there"), [("a.idx", "a.bin"), ("a.bin", "a.idx")])
def test_half_a_pair_is_named(tmp_path: Path, missing: str, there: str) -> None:
    corpora.write_tokens(tmp_path / "a", corpora.documents(3))
    corpora.write_tokens(tmp_path / "b", corpora.documents(3))
    (tmp_path / missing).unlink()
    with pytest.raises(FormatError, match=f"{there} has no {missing} beside it"):
        iostack.open_corpus(tmp_path)


def test_a_stray_bin_does_not_make_a_token_corpus(tmp_path: Path) -> None:
    corpora.write_jsonl(tmp_path / "a.jsonl", corpora.texts(3))
    (tmp_path / "pytorch_model.bin").write_bytes(b"weights")
    corpus = iostack.open_corpus(tmp_path)
    assert corpus.format.name == "jsonl"
    assert [info.path for info in corpus.ignored] == ["pytorch_model.bin"]


def _header(*, version: int = 1, code: int = 8, sequences: int = 0, marks: int = 1) -> bytes:
    return b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", version, code, sequences, marks)


@pytest.mark.parametrize(
    ("index", "stream", "said"),
    [
        (b"", b"", "no Megatron index"),
        (b"MMIDIDX", b"", "no Megatron index"),
        (b"X" * 50, b"", "no Megatron index"),
        (_header(version=2) + bytes(8), b"", "version 2"),
        (_header(code=99) + bytes(8), b"", "unknown kind 99"),
        (_header(sequences=2**63, marks=2**62), b"", "truncated or damaged"),
        (_header(sequences=2**64 - 1, marks=2**64 - 1) + bytes(100), b"", "truncated or damaged"),
        (_header() + bytes(8), b"x", "1 bytes of uint16"),
        (_header() + bytes(8), b"xx", "0 tokens in the .idx, 1 in the .bin"),
        (_header(sequences=1) + struct.pack("<iqq", -1, 0, 0), b"", "negative length"),
        (_header(sequences=1) + struct.pack("<iqq", 2**31 - 1, 0, 0), b"xx", "2,147,483,647 tokens in the .idx"),
        (_header(sequences=2) + struct.pack("<iiqqq", 1, 1, 2, 0, 0), b"abcd", "back to back"),
        (_header(sequences=1, marks=2) + struct.pack("<iqqq", 1, 0, 0, 0), b"xx", "do not cover the sequences"),
        (_header(sequences=1, marks=3) + struct.pack("<iqqqq", 1, 0, 0, 9, 1), b"xx", "do not cover the sequences"),
        (
            _header(sequences=1, marks=5) + struct.pack("<iq5q", 1, 0, 0, 2**63 - 1, -(2**63), -1, 1),
            b"xx",
            "do not cover the sequences",
        ),  # each is larger than the one before it if the difference wraps around
    ],
)
def test_an_index_that_does_not_fit_is_refused_before_anything_is_allocated(
    tmp_path: Path, index: bytes, stream: bytes, said: str
) -> None:
    (tmp_path / "a.idx").write_bytes(index)
    (tmp_path / "a.bin").write_bytes(stream)
    with pytest.raises(ShardError, match=said):
        iostack.open_corpus(tmp_path).open_shard(0)


def test_a_manifest_that_names_no_index_is_refused(tmp_path: Path) -> None:
    stream, _ = corpora.write_tokens(tmp_path / "a", corpora.documents(3))
    size = stream.stat().st_size
    (tmp_path / SIDECAR).parent.mkdir()
    hostile = manifest_from_columns(format="tokens", paths=["a.bin"], bytes=[size], samples=[3])
    (tmp_path / SIDECAR).write_bytes(hostile.to_bytes())
    with pytest.raises(ShardError, match=r"a.bin: the manifest names no .idx"):
        iostack.open_corpus(tmp_path).open_shard(0)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_damaged_pair_gives_only_our_errors(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    stream, index = corpora.write_tokens(folder / "a", corpora.documents(4))
    for path in (stream, index):
        content = bytearray(path.read_bytes())
        for _ in range(data.draw(st.integers(0, 3))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        corpus = iostack.open_corpus(folder)
        for sample in corpus:
            assert sample["tokens"].ndim == 1
    except CorpusError:
        pass
