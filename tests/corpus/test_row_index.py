"""Row indexes: built once, and built anew when they are damaged, stale, or cannot be kept."""

from __future__ import annotations

from pathlib import Path

import corpora
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import iostack
from iostack.corpus.row_index import RowIndex, load_or_build


class Builder:
    """Builds an index, and counts how often."""

    def __init__(self) -> None:
        self.num_built = 0

    def __call__(self) -> RowIndex:
        self.num_built += 1
        arrays = {"start": np.arange(9), "kind": np.arange(3, dtype=np.int32), "none": np.zeros(0, np.uint8)}
        return RowIndex(arrays, {"names": "a, b"})


def _load(path: Path, builder: Builder, made_by: str = "test 1", shard_bytes: int = 100) -> RowIndex:
    index = load_or_build(path, made_by=made_by, shard_bytes=shard_bytes, build=builder)
    assert index.arrays["start"].tolist() == list(range(9))
    assert index.arrays["kind"].tolist() == [0, 1, 2]
    assert index.notes == {"names": "a, b"}
    return index


def test_an_index_is_built_once_and_then_mapped(tmp_path: Path) -> None:
    builder = Builder()
    _load(tmp_path / "i", builder)
    assert not _load(tmp_path / "i", builder).arrays["start"].flags.writeable
    assert builder.num_built == 1
    assert [path.name for path in tmp_path.iterdir()] == ["i.rows"]


def test_an_index_of_another_builder_or_shard_is_built_anew(tmp_path: Path) -> None:
    builder = Builder()
    _load(tmp_path / "i", builder)
    _load(tmp_path / "i", builder, made_by="test 2")
    _load(tmp_path / "i", builder, made_by="test 2", shard_bytes=101)
    assert builder.num_built == 3


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_damaged_index_is_built_anew(tmp_path: Path, data: st.DataObject) -> None:
    builder = Builder()
    (tmp_path / "i.rows").unlink(missing_ok=True)
    _load(tmp_path / "i", builder)
    content = bytearray((tmp_path / "i.rows").read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    (tmp_path / "i.rows").write_bytes(content)
    _load(tmp_path / "i", builder)
    _load(tmp_path / "i", builder)
    assert builder.num_built in (1, 2)  # 1: the damage was in a byte that means nothing


def test_an_index_that_cannot_be_kept_stays_in_memory(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    builder = Builder()
    _load(tmp_path / "no_such_folder" / "i", builder)
    assert "is kept in memory only" in caplog.text


def test_a_shard_that_was_rewritten_has_another_index(tmp_path: Path) -> None:
    path = corpora.write_jsonl(tmp_path / "a.jsonl", [{"n": 1}, {"n": 2}])
    assert iostack.open_corpus(path).open_shard(0).counts.samples == 2
    replacement = tmp_path / "new"
    replacement.write_bytes(path.read_bytes().replace(b"\n{", b" {"))
    assert replacement.stat().st_size == path.stat().st_size
    replacement.replace(path)
    assert iostack.open_corpus(path).open_shard(0).counts.samples == 1


def test_a_cache_folder_that_cannot_be_written_to_does_not_stop_local_reading(tmp_path: Path) -> None:
    path = corpora.write_jsonl(tmp_path / "a.jsonl", corpora.texts(3))
    (tmp_path / "file").write_text("not a folder")
    corpus = iostack.open_corpus(path, cache_dir=tmp_path / "file" / "cache")
    assert corpus.open_shard(0).counts.samples == 3
