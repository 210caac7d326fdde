"""Map one shard's file into memory."""

from __future__ import annotations

import mmap
from pathlib import Path

from iostack.errors import ShardError

Mapped = mmap.mmap | bytes
"""A file as memory: slices are copies, ``np.frombuffer`` gives views; an empty file, which cannot be mapped, is b""."""


def map_file(path: Path, *, name: str) -> Mapped:
    """Map a file read-only; ``name`` names it in errors. The map goes when the last array over it does.

    Raises:
        ShardError: it cannot be opened.
    """
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if file.seek(0, 2) else b""
    except OSError as error:
        raise ShardError(f"{name}: cannot be opened: {error.strerror}", hint="check that it is there") from error
