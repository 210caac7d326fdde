"""Whole samples as pieces of work: which rows some batches take, planned by the consumer several batches at a time, and unread."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Protocol

import numpy as np

from iostack.loader.order.schedule import Draws, Schedule
from iostack.loader.samples.row_sources import Part
from iostack.loader.samples.rows import RowReader
from iostack.loader.sources import Source
from iostack.loader.state import Cursors
from iostack.loader.tasks.task import BatchTask
from iostack.stages import tally_here

ROWS_PLANNED = 256
"""Planning this many rows at once costs 1 us for each; in batches of 32 it would be 3."""
_SHORT_WAIT_S = 0.001


@dataclass(frozen=True)
class Work:
    """Batches to be read, and the cursors after each of them."""

    task: BatchTask
    cursors: Sequence[Cursors]

    def name(self) -> str:
        """Return what messages and traces call it."""
        return str(self.task)

    def one_by_one(self, batch_size: int) -> Iterator[Work]:
        """Yield each of its batches as a work of its own."""
        for task, cursors in zip(self.task.one_by_one(batch_size), self.cursors, strict=True):
            yield Work(task, [cursors])


class SampleSource(Source, Protocol):
    """Plans the rows that one source gives to batches; ``reader`` reads them, in any thread."""

    reader: RowReader
    number: int

    def plan(self, draws: Draws, valid: np.ndarray, rows: int, batch_rows: int) -> Iterator[Part]:
        """Yield its part of each ``rows`` of a block, unread; before the first, writes which rows of the block are valid.

        ``rows`` are those of one or several batches of ``batch_rows`` each.
        """
        ...


class Planner:
    """Plans the batches of a loader; belongs to the consumer's thread. ``together`` tells how many are one piece of work now."""

    def __init__(
        self, schedule: Schedule, sources: Sequence[SampleSource], *, ends_by_data: bool, together: Callable[[], int]
    ) -> None:
        self._schedule = schedule
        self._sources = sources
        self._ends_by_data = ends_by_data
        self._together = together

    def works(self, position: int, end: int | None) -> Iterator[Work]:
        """Yield the batches from ``position`` on; ``end`` is the first position that is only padding, if known.

        The first waits for no other, and none does where units come slowly, as those of which filters keep little.
        """
        rows, batch_size = self._schedule.topology.rows, self._schedule.topology.batch_size
        num_batches = 1
        held_back: list[Work] = []
        while end is None or position < end:
            if end is not None:
                num_batches = min(num_batches, -(-(end - position) // batch_size))
            works = self._plan(position, num_batches)
            before_s = _waited_s()
            first = next(works)
            has_waited = _waited_s() - before_s > _SHORT_WAIT_S
            for work in chain([first], works):
                if not self._ends_by_data:
                    yield work
                    continue
                # A batch of only padding counts only if a valid one follows it.
                held_back.append(work)
                if work.task.valid.any():
                    yield from held_back
                    held_back.clear()
                if all(source.is_finished() for source in self._sources):
                    return
            position += num_batches * batch_size
            # Where only the data tells the end, what comes after it must not be asked for.
            most = 1 if self._ends_by_data or has_waited else max(self._together(), ROWS_PLANNED // rows)
            num_batches = min(2 * num_batches, most)

    def _plan(self, position: int, num_batches: int) -> Iterator[Work]:
        """Yield so many batches, the first of which is at ``position``, as pieces of work."""
        num_rows = self._schedule.topology.rows
        rows = self._together() * num_rows
        block = self._schedule.block(position, num_batches)
        valid = self._schedule.is_within(block.positions)
        parts = [source.plan(draws, valid, rows, num_rows) for source, draws in zip(self._sources, block.draws)]
        for first, of_sources in zip(range(0, len(valid), rows), zip(*parts, strict=True), strict=True):
            given = [(source.number, part) for source, part in zip(self._sources, of_sources) if len(part.places)]
            of_work = valid[first : first + rows]
            tasks = [(part.places, part.task) for _, part in given]
            task = BatchTask(position, of_work, tasks, len(of_work) // num_rows)
            position += task.num_batches * self._schedule.topology.batch_size
            cursors = [
                {number: part.cursors[batch] for number, part in given if part.cursors and part.cursors[batch]}
                for batch in range(task.num_batches)
            ]
            yield Work(task, cursors)


def _waited_s() -> float:
    """Return for how long this thread has waited since its tally began."""
    tally = tally_here()
    return math.fsum(tally.waited_s.values()) if tally is not None else 0.0
