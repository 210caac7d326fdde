"""Which sample a worker is at: a page of memory that it shares with its parent, readable after the worker was killed.

starting ──ready──> idle ──task──> working ──> reading a row / transforming a row ──> ... ──> idle
"""

from __future__ import annotations

import mmap
import struct
import time
from collections.abc import Mapping
from enum import IntEnum
from typing import NamedTuple

Place = tuple[int, int, int]
"""(source, shard, row) of a sample; a row of -1 stands for no single one."""

NOTE_BYTES = mmap.PAGESIZE
_NOTE = struct.Struct("<QqqqqdQ")
_NO_TASK = 0
"""What a new page says; tasks count from 1."""


class Phase(IntEnum):
    """What a worker does with the sample of a note."""

    OTHER = 0
    READING = 1
    TRANSFORMING = 2


class Note(NamedTuple):
    """``since`` is ``time.monotonic()``, the same in all processes."""

    task: int
    phase: Phase
    place: Place
    since: float


def read_note(page: mmap.mmap) -> Note | None:
    """Return what a worker is at; None if it is at no task, or was writing just then."""
    before, phase, source, shard, row, since, after = _NOTE.unpack_from(page)
    if before != after or before == _NO_TASK or phase not in list(Phase):
        return None
    return Note(before, Phase(phase), (source, shard, row), since)


class Notes:
    """A worker's side of the page; it knows too which samples have killed workers and must not be touched again."""

    def __init__(self, page: mmap.mmap) -> None:
        self._page = page
        self._task = _NO_TASK
        self._refused: Mapping[Place, str] = {}
        self.is_careful = False

    def start(self, task: int, refused: Mapping[Place, str], *, is_careful: bool) -> None:
        """Begin a task; ``is_careful``: its rows are to be read one at a time."""
        self._task, self._refused, self.is_careful = task, refused, is_careful
        self.write(Phase.OTHER, (-1, -1, -1))

    def stop(self) -> None:
        """End the task."""
        self._task = _NO_TASK
        self.write(Phase.OTHER, (-1, -1, -1))

    def refusal(self, place: Place) -> str:
        """Return why a sample must not be touched, or nothing."""
        return self._refused.get(place, "") if self._refused else ""

    def write(self, phase: Phase, place: Place) -> None:
        """Note what is about to happen."""
        _NOTE.pack_into(self._page, 0, self._task, phase, *place, time.monotonic(), self._task)
