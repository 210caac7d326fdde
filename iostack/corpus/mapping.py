"""Map files into memory."""

from __future__ import annotations

import errno
import mmap
import resource
from pathlib import Path

from iostack.errors import ShardError

Mapped = mmap.mmap | bytes
"""A file as memory: slices are copies, ``np.frombuffer`` gives views; an empty file, which cannot be mapped, is b""."""


def map_file(path: Path) -> Mapped:
    """Map a file read-only. The map, and its file descriptor, go when the last array over it does.

    Raises:
        OSError: it cannot be opened.
    """
    try:
        return _map(path)
    except OSError as error:
        # A plan may keep more shards open than the 1024 files that many systems allow before one asks for more.
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if error.errno != errno.EMFILE or soft == hard:
            raise
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        return _map(path)


def map_shard(path: Path, *, name: str) -> Mapped:
    """Map a file of a shard; ``name`` names the shard in errors.

    Raises:
        ShardError: it cannot be opened.
    """
    try:
        return map_file(path)
    except OSError as error:
        raise ShardError(f"{name}: cannot be opened: {error.strerror}", hint="check that it is there") from error


def _map(path: Path) -> Mapped:
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if file.seek(0, 2) else b""
