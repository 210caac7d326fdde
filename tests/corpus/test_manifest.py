"""The manifest: what it keeps, how it opens, and what a damaged or hostile one can do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iostack.corpus.contracts import Counts, ObjectInfo, Shard
from iostack.corpus.manifest import Manifest, load_manifest, manifest_from_columns, manifest_of
from iostack.errors import CorpusError, ShardError

SHARDS = [
    Shard(ObjectInfo("a.bin", 10, "e1"), (ObjectInfo("a.idx", 7, "e2"),)),
    Shard(ObjectInfo("ünter/b.jsonl.zst", 2**40, ""), (), "zstd"),
]


def _write(path: Path, manifest: Manifest) -> Path:
    path.write_bytes(manifest.to_bytes())
    return path


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    written = manifest_of("tokens", SHARDS, [Counts(5, 50), Counts(6, 60)])
    read = load_manifest(_write(tmp_path / "m.arrow", written), source="m")
    assert (read.num_shards, read.format, read.fingerprint) == (2, "tokens", written.fingerprint)
    assert [read.shard(i) for i in range(2)] == SHARDS
    assert (read.total_samples, read.total_tokens) == (11, 110)
    assert read.bytes.tolist() == [10, 2**40]
    assert (read.path(1), read.etag(0)) == ("ünter/b.jsonl.zst", "e1")


def test_one_unknown_count_makes_the_counts_unknown() -> None:
    manifest = manifest_of("tokens", SHARDS, [Counts(5, 50), None])
    assert (manifest.samples, manifest.tokens, manifest.total_samples) == (None, None, None)
    assert [manifest.counts(i) for i in range(2)] == [Counts(5, 50), None]


def test_the_fingerprint_covers_path_bytes_and_counts_and_nothing_else() -> None:
    columns = {"format": "jsonl", "paths": ["a", "b"], "bytes": [1, 2], "samples": [3, 4], "tokens": [5, 6]}
    known = manifest_from_columns(**columns).fingerprint
    assert known == "b0ff903851ec4216e67a0e62bb69c093"  # it is in saved states: it must never change
    assert manifest_from_columns(**columns, etags=["x", "y"]).fingerprint == known
    changes = {"paths": ["a", "c"], "bytes": [1, 3], "samples": [3, 5], "tokens": [5, 7]}
    found = {known, *(manifest_from_columns(**{**columns, name: value}).fingerprint for name, value in changes.items())}
    assert len(found) == 5
    swapped = {name: value[::-1] if isinstance(value, list) else value for name, value in columns.items()}
    assert manifest_from_columns(**swapped).fingerprint not in found


def test_numbers_are_views_of_the_mapped_file(tmp_path: Path) -> None:
    count = 100_000
    samples = np.arange(count) % 97
    written = manifest_from_columns(
        format="jsonl", paths=[f"{i:06}.jsonl" for i in range(count)], bytes=samples + 1, samples=samples
    )
    before = pa.total_allocated_bytes()
    path = _write(tmp_path / "m.arrow", written)
    read = load_manifest(path, source="m")
    assert pa.total_allocated_bytes() - before < 100_000
    assert read.samples is not None
    assert not read.samples.flags.owndata
    assert not read.samples.flags.writeable
    np.testing.assert_array_equal(read.samples, samples)
    assert read.path(99_999) == "099999.jsonl"


@pytest.mark.parametrize("path", ["../../etc/passwd", "/etc/passwd", "a/../../b", "", "a\0b"])
def test_paths_that_lead_out_of_the_corpus_are_refused(path: str) -> None:
    manifest = manifest_from_columns(format="jsonl", paths=[path], bytes=[1], samples=[1])
    with pytest.raises(ShardError, match="the name"):
        manifest.path(0)
    with pytest.raises(ShardError, match="the name"):
        manifest.shard(0)
    companion = Shard(ObjectInfo("a.bin", 1), (ObjectInfo(path, 1),))
    with pytest.raises(ShardError, match="the name"):
        manifest_of("tokens", [companion], [None]).shard(0)


@pytest.mark.parametrize("samples", [[-2], [2**62 + 1], [2**62, 2**62]])
def test_counts_that_cannot_be_are_refused(samples: list[int]) -> None:
    ones = [1] * len(samples)
    manifest = manifest_from_columns(format="jsonl", paths=["a"] * len(samples), bytes=ones, samples=samples)
    with pytest.raises(CorpusError, match="the manifest is damaged"):
        _ = manifest.samples


@pytest.mark.parametrize("companions", ["[", "[1]", '[["a"]]', '[["a", "x", ""]]', '[["a", 1e999, ""]]', "[" * 100_000])
def test_companions_that_are_none_are_refused(companions: str) -> None:
    manifest = manifest_from_columns(format="tokens", paths=["a"], bytes=[1], samples=[1], companions=[companions])
    with pytest.raises(CorpusError, match="the manifest is damaged"):
        manifest.shard(0)


def test_a_compression_that_nobody_undoes_is_refused() -> None:
    manifest = manifest_from_columns(format="jsonl", paths=["a"], bytes=[1], samples=[1], compressions=["lz4"])
    with pytest.raises(CorpusError, match="the manifest is damaged: shard 0 is compressed as 'lz4'"):
        manifest.shard(0)


@pytest.mark.parametrize("middle", [100, -3, 2**62])
def test_text_outside_its_column_is_refused(middle: int) -> None:
    """Arrow checks only the first and the last offset of a column."""
    sound = manifest_from_columns(format="jsonl", paths=["a", "b"], bytes=[1, 1], samples=[1, 1])
    batch = pa.ipc.open_file(pa.BufferReader(sound.to_bytes())).get_batch(0)
    buffers = [None, pa.py_buffer(np.array([0, middle, 2], np.int64)), pa.py_buffer(b"ab")]
    hostile = pa.Array.from_buffers(pa.large_string(), 2, buffers)
    batch = batch.set_column(batch.schema.get_field_index("path"), "path", hostile)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    with pytest.raises(CorpusError, match="the manifest is damaged: path of shard 0"):
        load_manifest(sink.getvalue().to_pybytes(), source="m").path(0)


def test_another_arrow_file_is_no_manifest(tmp_path: Path) -> None:
    path = tmp_path / "m.arrow"
    batch = pa.record_batch({"x": [1]})
    with pa.ipc.new_file(path, batch.schema) as writer:
        writer.write_batch(batch)
    with pytest.raises(CorpusError, match="not a manifest of this version"):
        load_manifest(path, source="m")


WHOLE = manifest_of("tokens", SHARDS, [Counts(5, 50), Counts(6, 60)]).to_bytes()


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_damaged_manifest_gives_only_our_errors(data: st.DataObject) -> None:
    content = bytearray(WHOLE)
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content
    try:
        manifest = load_manifest(bytes(content), source="m")
        for i in range(min(manifest.num_shards, 10)):
            manifest.shard(i)
    except CorpusError:
        pass
