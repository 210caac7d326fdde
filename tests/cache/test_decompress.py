"""Decompression into the cache: complete, bounded, and refused where it is cut short."""

from __future__ import annotations

import gzip
from contextlib import suppress
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from iostack.cache import decompress as module
from iostack.cache.decompress import decompress
from iostack.errors import CacheError, ShardError

PACK = {"gzip": gzip.compress, "zstd": zstandard.compress}


def _decompress(folder: Path, content: bytes, kind: str, *, free_floor_bytes: int = 0) -> bytes:
    (folder / "in").write_bytes(content)
    decompress(folder / "in", folder / "out", kind=kind, name="a", free_floor_bytes=free_floor_bytes)
    return (folder / "out").read_bytes()


@pytest.mark.parametrize("kind", PACK)
def test_one_or_many_frames_are_one_file(tmp_path: Path, kind: str) -> None:
    parts = [b"one" * 1000, b"", b"two" * 500_000]
    assert _decompress(tmp_path, b"".join(map(PACK[kind], parts)), kind) == b"".join(parts)
    assert _decompress(tmp_path, b"", kind) == b""


def test_skippable_zstd_frames_are_skipped(tmp_path: Path) -> None:
    skippable = b"\x50\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"notes"
    assert _decompress(tmp_path, skippable + zstandard.compress(b"x") + skippable, "zstd") == b"x"


@pytest.mark.parametrize("kind", PACK)
def test_every_cut_is_noticed(tmp_path: Path, kind: str) -> None:
    whole = PACK[kind](bytes(range(256)) * 20)
    for size in range(1, len(whole)):
        with pytest.raises(ShardError, match="truncated or damaged"):
            _decompress(tmp_path, whole[:size], kind)


@pytest.mark.parametrize("kind", PACK)
def test_a_bomb_is_stopped(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_UNQUESTIONED_BYTES", 1 << 20)
    monkeypatch.setattr(module, "_RATIO_LIMIT", 100)
    with pytest.raises(ShardError, match="a decompression bomb"):
        _decompress(tmp_path, PACK[kind](bytes(50 << 20)), kind)
    assert (tmp_path / "out").stat().st_size <= 12 << 20


def test_a_disk_that_fills_up_is_noticed_while_writing(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="is full"):
        _decompress(tmp_path, gzip.compress(b"x"), "gzip", free_floor_bytes=1 << 60)


@settings(max_examples=200, deadline=None)
@given(kind=st.sampled_from(sorted(PACK)), data=st.data())
def test_damage_gives_our_error_or_bytes(
    tmp_path_factory: pytest.TempPathFactory, kind: str, data: st.DataObject
) -> None:
    content = bytearray(PACK[kind](b"some text " * 50))
    content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with suppress(ShardError):
        _decompress(tmp_path_factory.mktemp("damaged"), bytes(content), kind)
