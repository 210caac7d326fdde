"""Every kind of compression: it round-trips, and what is damaged, cut or a bomb is refused by name."""

from __future__ import annotations

import bz2
import gzip
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from iostack.cache.decompress import decompress
from iostack.errors import ShardError


def brotli(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "brotli") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


def snappy(data: bytes) -> bytes:
    return pa.Codec("snappy").compress(data, asbytes=True)


PACK: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "zstd": zstandard.compress,
    "bz2": bz2.compress,
    "brotli": brotli,
    "snappy": snappy,
}
DATA = b"".join(b"line %d\n" % number for number in range(5000))


def unpack(kind: str, packed: bytes, folder: Path) -> bytes:
    source, destination = folder / "packed", folder / "plain"
    source.write_bytes(packed)
    decompress(source, destination, kind=kind, name="a.shard", free_floor_bytes=0)
    return destination.read_bytes()


@pytest.mark.parametrize("kind", PACK)
@pytest.mark.parametrize("data", [b"", b"x", DATA, DATA * 60], ids=["empty", "byte", "blocks", "many blocks"])
def test_each_kind_comes_back(tmp_path: Path, kind: str, data: bytes) -> None:
    assert unpack(kind, PACK[kind](data), tmp_path) == data


@pytest.mark.parametrize("kind", PACK)
def test_what_is_cut_short_or_followed_by_rubbish_is_named(tmp_path: Path, kind: str) -> None:
    packed = PACK[kind](DATA)
    for damaged in (packed[: len(packed) // 2], packed[:-3], packed[:1], packed + b"rubbish behind it"):
        with pytest.raises(ShardError, match=rf"a\.shard: the {kind} stream is truncated or damaged"):
            unpack(kind, damaged, tmp_path)


@pytest.mark.parametrize("size", [b"\xff\xff\xff\xff\x0f", b"\xff" * 5, b"\xff" * 40, b"\x80", b"\xff\xff\xff\x7f"])
def test_a_snappy_block_that_claims_too_much_is_refused_unread(tmp_path: Path, size: bytes) -> None:
    with pytest.raises(ShardError, match=r"cannot hold|truncated"):
        unpack("snappy", size + snappy(DATA)[2:][:500], tmp_path)


def test_a_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("iostack.cache.decompress._UNQUESTIONED_BYTES", 1 << 20)
    for kind in ("bz2", "brotli"):
        with pytest.raises(ShardError, match="a decompression bomb"):
            unpack(kind, PACK[kind](bytes(64 << 20)), tmp_path)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_damaged_streams_give_the_data_or_our_error(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(list(PACK)))
    packed = bytearray(PACK[kind](DATA[:3000]))
    for _ in range(data.draw(st.integers(1, 3))):
        packed[data.draw(st.integers(0, len(packed) - 1) | st.integers(0, 12))] = data.draw(st.integers(0, 255))
    with tempfile.TemporaryDirectory() as folder, suppress(ShardError):
        unpack(kind, bytes(packed), Path(folder))
