"""A file that is being made in the cache folder, and stops before the disk is full."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

from iostack.errors import CacheError
from iostack.stopping import refuse_if_stopped

_CHECK_DISK_EVERY_BYTES = 64 << 20


class RoomyFile(io.FileIO):
    """A new file at ``path``; writing what would leave less than ``free_floor_bytes`` on the disk is a ``CacheError``.

    The disk is looked at before the first write, then every 64 MiB. ``name`` names in errors what the file is made of.
    """

    def __init__(self, path: Path, *, name: str, free_floor_bytes: int) -> None:
        super().__init__(path, "w")
        self._path = path
        self._source = name
        self._free_floor_bytes = free_floor_bytes
        self._written = self._next_check = 0

    def write(self, data: Any, /) -> int:
        """Write all of ``data``; return its bytes."""
        refuse_if_stopped()
        view = memoryview(data).cast("B")
        if self._written + len(view) > self._next_check:
            self._check_disk(len(view))
        self._written += len(view)
        done = 0
        while done < len(view):
            done += super().write(view[done:]) or 0
        return len(view)

    def _check_disk(self, coming: int) -> None:
        self._next_check = self._written + coming + _CHECK_DISK_EVERY_BYTES
        if shutil.disk_usage(self._path.parent).free - coming < self._free_floor_bytes:
            folder = self._path.parent.parent.parent
            raise CacheError(
                f"the cache folder {folder} is full: it took {self._written:,} bytes made of {self._source}",
                hint="free some space, or name another folder with --cache-dir or IOSTACK_CACHE",
            )
