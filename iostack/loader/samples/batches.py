"""Batches of whole samples: planned by the consumer, handed out in order, and read by threads ahead of it or by itself.

    planned ──at hand──────────────────> read in its turn by the consumer ──> handed out
        |-----else──> read ahead by a thread ──────────────────────────────────^

Samples to which nothing is done, out of open shards that lie in the page cache, are at hand: copying them holds the GIL, so
a thread would only take it from the consumer, and give it back, for each batch. Small batches are read several at a time:
grouping rows by shard costs as much for one.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, count
from typing import Protocol

import numpy as np

from iostack.batch_memory import BatchMemory
from iostack.corpus.contracts import Column, Sample
from iostack.errors import OriginError, PluginError, ShardError, SubstitutionError
from iostack.loader.ahead.lookahead import LookAhead
from iostack.loader.ahead.residency import Residency
from iostack.loader.device.copies import LoadedBatch
from iostack.loader.metering.meter import Pending
from iostack.loader.order.schedule import Draws, Int64s, Schedule
from iostack.loader.reading import Reading
from iostack.loader.samples.disk_waits import DiskWaits
from iostack.loader.samples.row_sources import Part
from iostack.loader.samples.rows import RowReader
from iostack.loader.sources import Source
from iostack.loader.state import Cursors
from iostack.loader.tasks.batch_bytes import batch_bytes
from iostack.loader.tasks.collate import as_tensors
from iostack.loader.tasks.task import BatchTask, RowsTask, assemble
from iostack.loader.threads import Threads, patience_s
from iostack.stages import tally_here

_LEAST_AHEAD, _MOST_AHEAD = 2, 32
_HELD_IN_WORKERS_PER_BYTE = 3
"""A batch that a worker makes lies in its memory, in its slot, and in this process."""
_READ_AHEAD_BYTES = 8 << 20
"""Of batches that are only read: more takes as long to read, and is out of the processor's caches when it is used."""
_FREED_BYTES = 16 << 20
_WORK_BYTES, _MOST_TOGETHER = 8 << 20, 32
"""Of one piece of work, as its rows are stored, and in batches: what comes once for each shard and batch is shared by more rows."""
_OF_SOME_ROWS = (ShardError, OriginError, SubstitutionError, PluginError)
"""Errors that rows of a single batch may make."""
_ROWS_PLANNED = 256
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


class SampleSource(Source, Protocol):
    """Plans the rows that one source gives to batches; ``reader`` reads them, in any thread."""

    reader: RowReader
    number: int

    def plan(self, draws: Draws, valid: np.ndarray, rows: int, batch_rows: int) -> Iterator[Part]:
        """Yield its part of each ``rows`` of a block, unread; before the first, writes which rows of the block are valid.

        ``rows`` are those of one or several batches of ``batch_rows`` each.
        """
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
        self._memory_bytes = reading.memory.host
        self._held_per_byte = _HELD_IN_WORKERS_PER_BYTE if reading.elsewhere else 1
        self._only_reads = not (reading.elsewhere or any(source.transforms for source in reading.plan.sources))
        self._together = 1
        most_bytes = reading.lookahead_bytes * len(sources)
        if self._only_reads:
            together = min(_WORK_BYTES, most_bytes // 4) // max(1, mean_batch_bytes)
            most_bytes = min(most_bytes, _READ_AHEAD_BYTES)
            if any(source.uses_units for source in reading.plan.sources):  # what is planned waits for units
                together = min(together, _ROWS_PLANNED // schedule.topology.rows)
            self._together = max(1, min(_MOST_TOGETHER, together))
        self._most_bytes = most_bytes
        self._lookahead = LookAhead(most_bytes, mean_batch_bytes * self._together)
        self._disk_waits = DiskWaits()
        self._memory = BatchMemory()
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
            self._memory.clear()
            for source in self._sources:
                source.stop()

    def _read_ahead(self, planned: Iterator[Work]) -> Iterator[LoadedBatch]:
        coming: deque[tuple[Work, Pending[list[LoadedBatch]] | None]] = deque()
        while True:
            while self._has_room([pending for _, pending in coming]) and (work := next(planned, None)) is not None:
                coming.append((work, None if self._is_at_hand(work) else self._submit(work)))
            if not coming:
                return
            work, pending = coming.popleft()
            yield from self._loaded(work, pending)

    def _loaded(self, work: Work, pending: Pending[list[LoadedBatch]] | None) -> Iterable[LoadedBatch]:
        """Return its batches; where it fails those before the one that is to blame come first, as if each were alone."""
        try:
            return self._load(work) if pending is None else self._result(work, pending)
        except _OF_SOME_ROWS:
            if work.task.num_batches == 1:
                raise
            return self._one_by_one(work)

    def _one_by_one(self, work: Work) -> Iterator[LoadedBatch]:
        tasks = work.task.one_by_one(self._schedule.topology.batch_size)
        for task, cursors in zip(tasks, work.cursors, strict=True):
            alone = Work(task, [cursors])
            yield from self._result(alone, self._submit(alone))

    def _has_room(self, coming: Sequence[Pending[list[LoadedBatch]] | None]) -> bool:
        """Return whether more may come: what is at hand takes no memory, and shows which shards will be needed."""
        pending = [each for each in coming if each is not None]
        if pending and (len(pending) + 1) * self._held_per_byte * self._lookahead.piece_bytes > self._memory_bytes:
            return False
        return len(coming) < self._least_ahead or (
            bool(pending) and len(coming) < _MOST_AHEAD // self._together and self._lookahead.has_room(pending)
        )

    def _is_at_hand(self, work: Work) -> bool:
        if not self._only_reads or self._disk_waits.seen:
            return False
        return all(self._residency(rows).are_open(rows.located.shards) for _, rows in work.task.parts)

    def _submit(self, work: Work) -> Pending[list[LoadedBatch]]:
        return self._meter.submit(self._threads, "assemble", self._load, work, label=work.name)

    def _result(self, work: Work, pending: Pending[list[LoadedBatch]]) -> list[LoadedBatch]:
        num_bytes = sum(self._residency(rows).shard_bytes(rows.located.shards) for _, rows in work.task.parts)
        return pending.result(deadline_s=patience_s(num_bytes) + self._slack_s, awaited=work.name)

    def _planned(self, position: int, end: int | None) -> Iterator[Work]:
        rows, batch_size = self._schedule.topology.rows, self._schedule.topology.batch_size
        # Where only the data tells the end, what comes after it must not be asked for.
        most_at_once = 1 if self._ends_by_data else max(self._together, _ROWS_PLANNED // rows)
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
            # The first batch waits for no other, and none does where units come slowly, as those of which filters keep little.
            num_batches = 1 if has_waited else min(2 * num_batches, most_at_once)

    def _plan(self, position: int, num_batches: int) -> Iterator[Work]:
        """Yield so many batches, the first of which is at ``position``, as pieces of work."""
        if self._elsewhere:
            self._together = self._elsewhere.together(self._most_bytes)
        num_rows = self._schedule.topology.rows
        rows = self._together * num_rows
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

    def _load(self, work: Work) -> list[LoadedBatch]:
        task, step = work.task, self._schedule.topology.batch_size
        with self._disk_waits.watched():
            columns = self._elsewhere.do(task) if self._elsewhere else assemble(task, self._read, self._memory)
        batches = [as_tensors(each) for each in columns]
        self._lookahead.measured(batch_bytes(columns[0]) * len(columns))  # looking at each value takes 0.1 us
        return [
            LoadedBatch(batch, next_position, cursors)
            for batch, next_position, cursors in zip(batches, count(task.position + step, step), work.cursors)
        ]

    def _residency(self, task: RowsTask) -> Residency:
        return self._sources[task.number].reader.residency

    def _read(self, task: RowsTask) -> tuple[list[Sample] | dict[str, Column], Int64s]:
        return self._sources[task.number].reader.read(task)

    def close(self) -> None:
        """Let go of the open shards; ``batches`` must be closed."""
        for source in self._sources:
            source.close()


def _waited_s() -> float:
    """Return for how long this thread has waited since its tally began."""
    tally = tally_here()
    return math.fsum(tally.waited_s.values()) if tally is not None else 0.0


def _keep_freed_memory() -> None:
    """Let glibc keep what batches leave behind for the next ones, up to 32 MiB a heap, as after any large block freed.

    Before a process has freed one (mallopt(3), M_MMAP_THRESHOLD) it returns to the system all beyond 128 KiB: each sample of
    70 KB was then read into pages that the system had just cleared, for 36 to 50 us of CPU instead of 23.
    """
    np.empty(_FREED_BYTES, np.uint8)  # freed at once, untouched
