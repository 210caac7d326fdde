"""Decompress one object into a file, and stop at what is cut short, damaged, or a decompression bomb."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from iostack.errors import CacheError, ShardError
from iostack.stopping import refuse_if_stopped

_BLOCK_BYTES = 1 << 20
_RATIO_LIMIT = 1000
_SNAPPY_RATIO_LIMIT = 64  # a copy of 64 bytes takes 3
_UNQUESTIONED_BYTES = 256 << 20
_CHECK_DISK_EVERY_BYTES = 64 << 20


def decompress(source: Path, destination: Path, *, kind: str, name: str, free_floor_bytes: int) -> None:
    """Write ``source``, one or many ``kind`` frames (gzip, zstd, bz2, brotli), decompressed to ``destination``.

    Memory is bounded. ``kind`` may also be snappy, in one raw block as MosaicML writes it: that cannot be streamed, so
    it takes memory for both forms, and a block that claims more than snappy can reach is refused unread.

    Raises:
        ShardError: damaged, truncated, or more than 1000 times as large as it was (beyond 256 MiB).
        CacheError: it would leave less than ``free_floor_bytes`` on the disk.
    """
    limit = max(_UNQUESTIONED_BYTES, _RATIO_LIMIT * source.stat().st_size)
    written = next_check = 0
    with source.open("rb") as compressed, destination.open("wb") as output:
        for block in _raw_snappy(compressed, name) if kind == "snappy" else _frames(compressed, name, kind):
            refuse_if_stopped()
            written += len(block)
            if written > limit:
                raise ShardError(
                    f"{name}: decompresses to more than {limit:,} bytes: a decompression bomb",
                    hint="if the data is honest, recompress it at a lower ratio",
                )
            if written >= next_check:
                next_check += _CHECK_DISK_EVERY_BYTES
                if shutil.disk_usage(destination.parent).free < free_floor_bytes:
                    raise CacheError(
                        f"the cache folder {destination.parent.parent.parent} is full: it took {written:,} bytes of {name}",
                        hint="free some space, or name another folder with --cache-dir or IOSTACK_CACHE",
                    )
            output.write(block)


def _frames(compressed: BinaryIO, name: str, kind: str) -> Iterator[bytes]:
    import pyarrow as pa

    with _damage(name, kind):
        stream = pa.CompressedInputStream(pa.PythonFile(compressed, "r"), kind)
        while block := stream.read(_BLOCK_BYTES):
            yield block


def _raw_snappy(compressed: BinaryIO, name: str) -> Iterator[bytes]:
    """Yield one raw block, which starts with its decompressed size: 7 bits per byte, lowest first (format_description.txt)."""
    import pyarrow as pa

    with _damage(name, "snappy"):
        data = compressed.read()
        size = last = 0
        for place, last in enumerate(data[:5]):
            size |= (last & 0x7F) << 7 * place
            if last < 0x80:
                break
        if not data or last >= 0x80 or size > _SNAPPY_RATIO_LIMIT * len(data):
            raise ValueError(f"{len(data):,} bytes cannot hold {size:,}")
        yield memoryview(pa.Codec("snappy").decompress(data, decompressed_size=size))  # type: ignore[misc]


@contextmanager
def _damage(name: str, kind: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        raise ShardError(
            f"{name}: the {kind} stream is truncated or damaged: {error}", hint="copy or write the shard again"
        ) from error
