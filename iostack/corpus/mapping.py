"""Map files into memory."""

from __future__ import annotations

import errno
import mmap
import resource
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from iostack.errors import ShardError

T = TypeVar("T")

_MOST_WITH_DESCRIPTOR = 64
"""So many indexes may hold one: importing pyarrow is 20 ms of a start that reads a few."""
_with_descriptor: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()

Mapped = mmap.mmap | bytes
"""A file as memory: slices are copies, ``np.frombuffer`` gives views; an empty file, which cannot be mapped, is b""."""


def allow_many_files() -> None:
    """Raise the number of files that this process may hold open from the soft limit to the hard one.

    Each open shard holds one descriptor, and many systems allow 1024 before one asks for more. Others in the process
    (sockets, libraries) need some too, and would meet the limit first where only a failed map raised it.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(ValueError, OSError):  # macOS refuses what it reports as the hard limit
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def map_file(path: Path) -> Mapped:
    """Map a file read-only. The map, and its file descriptor, go when the last array over it does.

    Raises:
        OSError: it cannot be opened.
    """
    return _with_more_files(_map, path)


def map_index(path: Path) -> memoryview:
    """Map a file that is read whole at once, read-only, and beyond the first few without holding a file descriptor.

    Python 3.11's mmap holds one, pyarrow's maps do not.

    Raises:
        OSError: it cannot be opened.
    """
    return _with_more_files(_map_without_descriptor, path)


def map_shard(path: Path, *, name: str) -> Mapped:
    """Map a file of a shard; ``name`` names the shard in errors.

    Raises:
        ShardError: it cannot be opened.
    """
    with _shard_errors(name):
        return map_file(path)


def map_shard_index(path: Path, *, name: str) -> memoryview:
    """Map a companion of a shard as ``map_index`` does; ``name`` names the shard in errors.

    Raises:
        ShardError: it cannot be opened.
    """
    with _shard_errors(name):
        return map_index(path)


@contextmanager
def _shard_errors(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ShardError(f"{name}: cannot be opened: {error.strerror}", hint="check that it is there") from error


def _with_more_files(open_map: Callable[[Path], T], path: Path) -> T:
    try:
        return open_map(path)
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
        allow_many_files()  # somebody lowered the limit since the corpus was opened
        return open_map(path)


def _map(path: Path) -> Mapped:
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if file.seek(0, 2) else b""


def _map_without_descriptor(path: Path) -> memoryview:
    with path.open("rb") as file:  # for its errors too: pyarrow's have no short text
        if not file.seek(0, 2):
            return memoryview(b"")
        if len(_with_descriptor) < _MOST_WITH_DESCRIPTOR and "pyarrow" not in sys.modules:
            mapped_here = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            _with_descriptor.add(mapped_here)
            return memoryview(mapped_here)
    import pyarrow as pa

    # Its buffer outlives the file. Reading it asks the system to read ahead all of it: good for indexes only.
    with pa.memory_map(str(path)) as mapped:
        return memoryview(mapped.read_buffer())
