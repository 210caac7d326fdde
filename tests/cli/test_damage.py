"""Damaged shards of formats that are counted by their index: ``inspect`` and ``index`` find all of them, and name each."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import corpora
import fsspec
import pytest

import iostack
from iostack.cli import main
from iostack.errors import DamagedShardsError, ShardError

SAMPLES = [(number, "x" * (number % 9)) for number in range(50)]


@pytest.fixture
def mds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NO_COLOR", "1")
    return corpora.write_mds(tmp_path / "mds", SAMPLES, per_shard=10)


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def _errors(capsys: pytest.CaptureFixture[str], command: str, uri: str | Path) -> list[str]:
    assert main([command, str(uri)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err.splitlines()


@pytest.mark.parametrize("command", ["inspect", "index"])
def test_one_truncated_shard_is_one_line(mds: Path, capsys: pytest.CaptureFixture[str], command: str) -> None:
    _cut(mds / "shard.00003.mds")
    error, hint = _errors(capsys, command, mds)
    assert error.startswith(f"error: {mds}/shard.00003.mds: ")
    assert error.endswith("206 bytes, index.json says 207: truncated or damaged")
    assert hint == "hint: copy or write the shard again"
    assert not (mds / ".iostack").exists()


@pytest.mark.parametrize("command", ["inspect", "index"])
def test_every_truncated_chunk_has_a_line_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    folder = corpora.write_litdata_tokens(tmp_path / "lit", [[[1, 2, 3]]] * 5)
    for number in (1, 4):
        _cut(folder / f"chunk-0-{number}.bin")
    first, second, error, hint = _errors(capsys, command, folder)
    for number, line in ((1, first), (4, second)):
        assert line.startswith(f"damaged: {folder}/chunk-0-{number}.bin: 17 bytes, index.json says 18: truncated")
        assert line.endswith("(copy or write the chunk again)")
    assert error.startswith(f"error: {folder}: 2 of 5 shards are damaged, the first: {folder}/chunk-0-1.bin: 17 bytes")
    assert hint == "hint: copy or write the chunk again"


@pytest.mark.parametrize("command", ["inspect", "index"])
def test_offsets_that_lie_are_found_where_sizes_are_right(
    mds: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    for number in (0, 2):
        data = bytearray((mds / f"shard.{number:05}.mds").read_bytes())
        data[8:12] = b"\xff\xff\xff\x7f"
        (mds / f"shard.{number:05}.mds").write_bytes(data)
    first, second, *_ = _errors(capsys, command, mds)
    assert "shard.00000.mds: samples that lie outside of it or not in order" in first
    assert "shard.00002.mds: samples that lie outside of it or not in order" in second


@pytest.mark.parametrize("command", ["inspect", "index"])
def test_remote_shards_are_told_by_the_listing_alone(
    mds: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    _cut(mds / "shard.00001.mds")
    memory = fsspec.filesystem("memory")
    memory.put(str(mds), "/mds-cut", recursive=True)
    try:
        error, _ = _errors(capsys, command, "memory://mds-cut")
        assert "shard.00001.mds: " in error
        assert "truncated or damaged" in error
    finally:
        memory.rm("/mds-cut", recursive=True)


def test_shards_cut_after_indexing_are_each_told(mds: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["index", str(mds)]) == 0
    capsys.readouterr()
    for number in (2, 4):
        _cut(mds / f"shard.{number:05}.mds")
    first, second, error, _ = _errors(capsys, "inspect", mds)
    assert "shard.00002.mds shrank from" in first
    assert "shard.00004.mds shrank from" in second
    assert "2 of 5 shards are damaged" in error


def test_an_index_that_is_broken_is_told_once(mds: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (mds / "shard.00001.mds").unlink()
    error, _ = _errors(capsys, "index", mds)
    assert error == f"error: {mds}/index.json names shard.00001.mds, which is not there (1 missing)"


def test_opening_raises_an_error_that_holds_each_and_crosses_processes(mds: Path) -> None:
    for number in (1, 2, 3):
        _cut(mds / f"shard.{number:05}.mds")
    with pytest.raises(DamagedShardsError) as caught:
        iostack.open_corpus(mds)
    other = pickle.loads(pickle.dumps(caught.value))
    assert isinstance(other, ShardError)
    assert [each.message for each in other.shards] == [each.message for each in caught.value.shards]
    assert (len(other.shards), other.hint) == (3, "copy or write the shard again")
