"""Batches of whole samples: planned by the consumer, read and decoded by threads ahead of it, handed out in order.

Where rows are only read, several batches are one piece of work: planning one and handing it to a thread and back cost
0.2 ms, as much as reading 200 documents.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Protocol

import numpy as np

from iostack.corpus.contracts import Sample
from iostack.loader.ahead.lookahead import LookAhead
from iostack.loader.device.copies import LoadedBatch
from iostack.loader.metering.meter import Pending
from iostack.loader.order.schedule import Draws, Int64s, Schedule
from iostack.loader.reading import Reading
from iostack.loader.samples.row_sources import Part
from iostack.loader.samples.rows import RowReader
from iostack.loader.sources import Source
from iostack.loader.state import Cursors
from iostack.loader.tasks.batch_bytes import batch_bytes
from iostack.loader.tasks.collate import as_tensors
from iostack.loader.tasks.task import BatchTask, RowsTask, assemble
from iostack.loader.threads import Threads, patience_s

_LEAST_AHEAD, _MOST_AHEAD = 2, 32
_READ_AHEAD_BYTES = 8 << 20
"""Of batches that are only read: more takes as long to read, and is out of the processor's caches when it is used."""
_WORK_BYTES, _MOST_TOGETHER = 1 << 20, 32
"""Of one piece of work, as its rows are stored, and in batches."""
_FREED_BYTES = 16 << 20


@dataclass(frozen=True)
class Work:
    """Batches to be read: ``run()`` reads them; ``name()`` is for messages, ``deadline_s`` is how long that may take."""

    name: Callable[[], str]
    deadline_s: float
    run: Callable[[], list[LoadedBatch]]


class SampleSource(Source, Protocol):
    """Plans the rows that one source gives to batches; ``reader`` reads them, in any thread."""

    reader: RowReader

    def plan(self, draws: Draws, valid: np.ndarray, cursors: Cursors) -> Part:
        """Return its part of some batches, unread; writes which rows are valid, and the cursors after the last batch."""
        ...


class SampleBatches:
    """All batches of a loader of whole samples, in order, from any position on."""

    def __init__(
        self,
        schedule: Schedule,
        sources: Sequence[SampleSource],
        reading: Reading,
        *,
        mean_batch_bytes: int,
    ) -> None:
        self._schedule = schedule
        self._sources = sources
        self._elsewhere = reading.elsewhere
        self._slack_s = reading.slack_s
        self._ends_by_data = reading.ends_by_data
        self._threads = Threads(reading.threads, "decode")
        self._unit_threads = reading.unit_threads
        self._least_ahead = reading.elsewhere.num_threads if reading.elsewhere else _LEAST_AHEAD
        most_bytes = reading.lookahead_bytes * len(sources)
        self._most_together = 1
        if not (reading.elsewhere or any(source.transforms for source in reading.plan.sources)):
            most_bytes = min(most_bytes, _READ_AHEAD_BYTES)
            if not any(source.uses_units for source in reading.plan.sources):  # whose cursors are those of each batch
                together = min(_WORK_BYTES, most_bytes // 4) // max(1, mean_batch_bytes)
                self._most_together = max(1, min(_MOST_TOGETHER, together))
        self._lookahead = LookAhead(most_bytes, mean_batch_bytes * self._most_together)
        self._meter = reading.meter

    def batches(self, position: int, end: int | None, cursors: Cursors) -> Generator[LoadedBatch, None, None]:
        """Yield the batches from ``position`` on; ``end`` is the first position that is only padding, if known.

        No thread runs when it is closed.
        """
        _keep_freed_memory()
        if self._elsewhere:
            self._elsewhere.start()
        try:
            for source in self._sources:
                source.restore(cursors, position % self._schedule.lanes)
            yield from self._meter.consumed(self._read_ahead(self._planned(position, end)))
        finally:
            if self._elsewhere:
                self._elsewhere.stop()
            self._threads.close()
            self._unit_threads.close()
            for source in self._sources:
                source.stop()

    def _read_ahead(self, planned: Iterator[Work]) -> Iterator[LoadedBatch]:
        pending: deque[tuple[Work, Pending[list[LoadedBatch]]]] = deque()
        while True:
            while self._has_room([coming for _, coming in pending]) and (work := next(planned, None)) is not None:
                pending.append((work, self._meter.submit(self._threads, "assemble", work.run, label=work.name)))
            if not pending:
                return
            work, coming = pending.popleft()
            yield from coming.result(deadline_s=work.deadline_s, awaited=work.name)

    def _has_room(self, pending: Sequence[Pending[list[LoadedBatch]]]) -> bool:
        return len(pending) < self._least_ahead or (len(pending) < _MOST_AHEAD and self._lookahead.has_room(pending))

    def _planned(self, position: int, end: int | None) -> Iterator[Work]:
        topology = self._schedule.topology
        held_back: list[Work] = []
        num_batches = 1
        while end is None or position < end:
            if end is not None:
                num_batches = min(num_batches, -(-(end - position) // topology.batch_size))
            block = self._schedule.block(position, num_batches)
            valid = self._schedule.is_within(block.positions)
            cursors: Cursors = {}
            parts = [
                source.plan(draws, valid, cursors)
                for source, draws in zip(self._sources, block.draws)
                if len(draws.places)
            ]
            deadline_s = patience_s(sum(part.shard_bytes for part in parts)) + self._slack_s
            task = BatchTask(position, valid, [(part.places, part.task) for part in parts], num_batches)
            work = Work(task.__str__, deadline_s, partial(self._load, task, cursors))
            position += num_batches * topology.batch_size
            num_batches = min(2 * num_batches, self._most_together)  # the first batch waits for no other
            if not self._ends_by_data:
                yield work
                continue
            # A batch of only padding counts only if a valid one follows it.
            held_back.append(work)
            if valid.any():
                yield from held_back
                held_back.clear()
            if all(source.is_finished() for source in self._sources):
                return

    def _load(self, task: BatchTask, cursors: Cursors) -> list[LoadedBatch]:
        batches = [
            as_tensors(each) for each in (self._elsewhere.do(task) if self._elsewhere else assemble(task, self._read))
        ]
        self._lookahead.measured(sum(map(batch_bytes, batches)))
        step = self._schedule.topology.batch_size
        return [
            LoadedBatch(columns, position, cursors)
            for columns, position in zip(batches, count(task.position + step, step))
        ]

    def _read(self, task: RowsTask) -> tuple[list[Sample], Int64s]:
        return self._sources[task.number].reader.read(task)

    def close(self) -> None:
        """Let go of the open shards; ``batches`` must be closed."""
        for source in self._sources:
            source.close()


def _keep_freed_memory() -> None:
    """Let glibc keep what batches leave behind for the next ones, up to 32 MiB a heap, as after any large block freed.

    Before a process has freed one (mallopt(3), M_MMAP_THRESHOLD) it returns to the system all beyond 128 KiB: each sample of
    70 KB was then read into pages that the system had just cleared, for 36 to 50 us of CPU instead of 23.
    """
    np.empty(_FREED_BYTES, np.uint8)  # freed at once, untouched
