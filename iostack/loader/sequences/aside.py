"""Units that lanes stand in, set aside on disk where they are too many for memory.

A lane needs the tokens of its unit, and where its sequences stand in them, until it has given them all, for they are the order.
Where the units of all lanes take more than a little, both lie in files of the cache folder that have no name, and are mapped:
pages that the system takes back when it needs to. Such a file is gone with its map, however the process ends. A disk that is
full, or slow, costs memory or time only.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from io import FileIO
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from iostack import logs
from iostack.corpus.mapping import map_index

_IN_MEMORY_BYTES = 32 << 20
_LEAST_BYTES = 16 << 10
"""Below this a file is more trouble than memory."""

Value = TypeVar("Value", bound=np.generic)

log = logs.logger("iostack.loader")


class Aside:
    """Where the units of ``num_lanes`` lanes are kept; ``folder`` is made when the first one is set aside. Thread-safe."""

    def __init__(self, folder: Path, num_lanes: int) -> None:
        self._folder = folder
        self._num_lanes = num_lanes
        self._is_refused = False

    def joined(self, parts: Iterable[NDArray[Value]]) -> NDArray[Value]:
        """Return one array of all parts, at least one: in memory where all lanes may hold so many, else mapped from a file.

        Parts are asked for one at a time, and those in the file are held no longer.
        """
        held: list[NDArray[Value]] = []
        held_bytes = 0
        coming = iter(parts)
        for part in coming:
            held.append(part)
            held_bytes += part.nbytes
            if self._is_much(held_bytes):
                return self._set_aside(chain(_taken(held), coming), part.dtype)
        return _joined(held)

    def _is_much(self, num_bytes: int) -> bool:
        return num_bytes > max(_IN_MEMORY_BYTES // self._num_lanes, _LEAST_BYTES) and not self._is_refused

    def _set_aside(self, parts: Iterator[NDArray[Value]], dtype: np.dtype[Value]) -> NDArray[Value]:
        try:
            file = self._file()
        except OSError as error:
            self._refuse(error)
            return _joined(list(parts))
        with file:
            written = 0
            for part in parts:
                try:
                    _write(file, part)
                except OSError as error:
                    self._refuse(error)
                    return _joined([_read(file, written, dtype), part, *parts])
                written += part.nbytes
            try:
                return np.frombuffer(map_index(Path(f"/dev/fd/{file.fileno()}")), dtype)
            except OSError as error:
                self._refuse(error)
                return _read(file, written, dtype)

    def _file(self) -> FileIO:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return tempfile.TemporaryFile(dir=self._folder, buffering=0)

    def _refuse(self, error: OSError) -> None:
        self._is_refused = True
        log.warning("units stay in memory, since %s takes none: %s", self._folder, error.strerror or error)


def _taken(held: list[NDArray[Value]]) -> Iterator[NDArray[Value]]:
    """Yield what is held, and let go of it."""
    while held:
        yield held.pop(0)


def _joined(parts: list[NDArray[Value]]) -> NDArray[Value]:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _write(file: FileIO, part: NDArray[Any]) -> None:
    left = part.data.cast("B") if len(part) else memoryview(b"")
    while left:
        left = left[file.write(left) :]


def _read(file: FileIO, num_bytes: int, dtype: np.dtype[Value]) -> NDArray[Value]:
    """Return what was written to the file, as memory of its own."""
    file.seek(0)
    values = np.empty(num_bytes // dtype.itemsize, dtype)
    left = values.data.cast("B") if num_bytes else memoryview(b"")
    while left:
        left = left[file.readinto(left) :]
    return values
