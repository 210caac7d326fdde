"""Decompress one object into a file, and stop at what is cut short, damaged, or a decompression bomb."""

from __future__ import annotations

import shutil
from pathlib import Path

from iostack.errors import CacheError, ShardError

_BLOCK_BYTES = 1 << 20
_RATIO_LIMIT = 1000
_UNQUESTIONED_BYTES = 256 << 20
_CHECK_DISK_EVERY_BYTES = 64 << 20


def decompress(source: Path, destination: Path, *, kind: str, name: str, free_floor_bytes: int) -> None:
    """Write ``source``, one or many ``kind`` (gzip or zstd) frames, decompressed to ``destination``; memory is bounded.

    Raises:
        ShardError: damaged, truncated, or more than 1000 times as large as it was (beyond 256 MiB).
        CacheError: it would leave less than ``free_floor_bytes`` on the disk.
    """
    import pyarrow as pa

    limit = max(_UNQUESTIONED_BYTES, _RATIO_LIMIT * source.stat().st_size)
    written = next_check = 0
    with source.open("rb") as compressed, destination.open("wb") as output:
        stream = pa.CompressedInputStream(pa.PythonFile(compressed, "r"), kind)
        while block := _read(stream, name, kind):
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


def _read(stream: object, name: str, kind: str) -> bytes:
    try:
        return stream.read(_BLOCK_BYTES)  # type: ignore[attr-defined, no-any-return]
    except (OSError, ValueError) as error:
        raise ShardError(
            f"{name}: the {kind} stream is truncated or damaged: {error}", hint="copy or write the shard again"
        ) from error
