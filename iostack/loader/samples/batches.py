"""Batches of whole samples: planned by the consumer, handed out in order, and read by threads ahead of it or by itself.

    planned ──at hand──────────────────> read in its turn by the consumer ──> handed out
        |-----else──> read ahead by a thread ──────────────────────────────────^

Samples to which nothing is done, out of open shards that lie in the page cache, are at hand: copying them holds the GIL, so
a thread would only take it from the consumer, and give it back, for each batch. Small batches are read several at a time:
grouping rows by shard costs as much for one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from functools import partial
from itertools import count

import numpy as np

from iostack.batch_memory import BatchMemory
from iostack.corpus.contracts import Column, Sample
from iostack.errors import OriginError, PluginError, ShardError, SubstitutionError
from iostack.loader.ahead.lookahead import LookAhead
from iostack.loader.ahead.residency import Residency
from iostack.loader.device.copies import LoadedBatch
from iostack.loader.metering.meter import Pending
from iostack.loader.order.schedule import Int64s, Schedule
from iostack.loader.reading import Reading
from iostack.loader.samples.disk_waits import DiskWaits
from iostack.loader.samples.planner import ROWS_PLANNED, Planner, SampleSource, Work
from iostack.loader.state import Cursors
from iostack.loader.tasks.batch_bytes import batch_bytes
from iostack.loader.tasks.collate import as_tensors
from iostack.loader.tasks.task import RowsTask, assemble
from iostack.loader.threads import Threads, patience_s

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
        self._threads = Threads(reading.threads, "decode")
        self._unit_threads = reading.unit_threads
        self._least_ahead = reading.elsewhere.num_threads if reading.elsewhere else _LEAST_AHEAD
        self._memory_bytes = reading.memory.host
        self._held_per_byte = _HELD_IN_WORKERS_PER_BYTE if reading.elsewhere else 1
        self._only_reads = not (reading.elsewhere or any(source.transforms for source in reading.plan.sources))
        together, most_bytes = 1, reading.lookahead_bytes * len(sources)
        if self._only_reads:
            together = min(_WORK_BYTES, most_bytes // 4) // max(1, mean_batch_bytes)
            most_bytes = min(most_bytes, _READ_AHEAD_BYTES)
            if any(source.uses_units for source in reading.plan.sources):  # what is planned waits for units
                together = min(together, ROWS_PLANNED // schedule.topology.rows)
            together = max(1, min(_MOST_TOGETHER, together))
        self._lookahead = LookAhead(most_bytes, mean_batch_bytes * together)
        # Workers take longer pieces of work where samples are quick.
        workers = reading.elsewhere
        self._together = partial(workers.together, most_bytes) if workers else partial(int, together)
        self._planner = Planner(schedule, sources, ends_by_data=reading.ends_by_data, together=self._together)
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
            yield from self._meter.consumed(self._read_ahead(self._planner.works(position, end)))
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
        for alone in work.one_by_one(self._schedule.topology.batch_size):
            yield from self._result(alone, self._submit(alone))

    def _has_room(self, coming: Sequence[Pending[list[LoadedBatch]] | None]) -> bool:
        """Return whether more may come: what is at hand takes no memory, and shows which shards will be needed."""
        pending = [each for each in coming if each is not None]
        if pending and (len(pending) + 1) * self._held_per_byte * self._lookahead.piece_bytes > self._memory_bytes:
            return False
        return len(coming) < self._least_ahead or (
            bool(pending) and len(coming) < _MOST_AHEAD // self._together() and self._lookahead.has_room(pending)
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


def _keep_freed_memory() -> None:
    """Let glibc keep what batches leave behind for the next ones, up to 32 MiB a heap, as after any large block freed.

    Before a process has freed one (mallopt(3), M_MMAP_THRESHOLD) it returns to the system all beyond 128 KiB: each sample of
    70 KB was then read into pages that the system had just cleared, for 36 to 50 us of CPU instead of 23.
    """
    np.empty(_FREED_BYTES, np.uint8)  # freed at once, untouched
