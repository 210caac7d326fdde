"""Batches of token sequences, assembled by the consumer's own thread.

    run of up to 4096 rows ──plan, at once──> blocks of about 4 MiB ──gather──> batches

Handing each batch through a thread would cost several times its gather; so threads only fetch shards and tokenise
units. Planning many batches at once costs little for each; gathering few at once keeps them in the processor's cache until
the consumer reads them. The first runs are short: the first batch comes at once.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from itertools import count
from typing import Protocol

import numpy as np

from iostack.errors import PlanError
from iostack.loader.device.copies import LoadedBatch
from iostack.loader.order.schedule import Draws, Schedule
from iostack.loader.reading import Reading
from iostack.loader.sequences.buffers import Buffers
from iostack.loader.sequences.slots import Slots
from iostack.loader.sources import Source
from iostack.loader.state import Cursors
from iostack.sizes import format_bytes
from iostack.stages import count as count_done

_MOST_ROWS_PLANNED = 4096

Fill = Callable[[slice, np.ndarray, Buffers], None]
"""Fills the rows ``places`` of a block, one at least, with ``part`` of what was drawn for a run, in order: ``fill(part, places, buffers)``."""


def batches_planned(rows: int) -> int:
    """Return how many batches of ``rows`` are planned at once, at most."""
    return max(1, _MOST_ROWS_PLANNED // rows)


class SequenceSource(Source, Protocol):
    """Fills rows of blocks with sequences."""

    def plan(self, draws: Draws) -> Fill:
        """Return what writes the drawn sequences, their identities, whether they are valid, and the cursors after each batch.

        It is called for one part after the other until all are out, or the pass is over.
        """
        ...


class SequenceBatches:
    """All batches of a loader of sequences, in order, from any position on."""

    def __init__(self, schedule: Schedule, sources: Sequence[SequenceSource], reading: Reading, slots: Slots) -> None:
        self._schedule = schedule
        self._elsewhere = reading.elsewhere
        self._sources = sources
        self._unit_threads = reading.unit_threads
        self._meter = reading.meter
        self._slots = slots
        self._ends_by_data = reading.ends_by_data

    def batches(self, position: int, end: int | None, cursors: Cursors) -> Generator[LoadedBatch, None, None]:
        """Yield the batches from ``position`` on; ``end`` is the first position that is only padding, if known.

        No thread runs when it is closed. Where the data says when a pass ends, blocks are one batch: what a larger one
        held beyond the end would be tokenised for nothing.
        """
        if self._elsewhere:
            self._elsewhere.start()
        try:
            for source in self._sources:
                source.restore(cursors, position % self._schedule.lanes)
            for buffers in self._meter.consumed(self._blocks(position, end)):
                yield from self._split(buffers, position)
                position += buffers.num_batches * self._schedule.topology.batch_size
        finally:
            if self._elsewhere:
                self._elsewhere.stop()
            self._unit_threads.close()
            for source in self._sources:
                source.stop()
            self._slots.clear()

    def _blocks(self, position: int, end: int | None) -> Iterator[Buffers]:
        topology = self._schedule.topology
        size = 1
        while end is None or position < end:
            if end is not None:
                size = min(size, -(-(end - position) // topology.batch_size))
            for buffers, positions in self._run(position, size):
                if end is not None:
                    buffers.valid[~self._schedule.is_within(positions)] = False
                is_finished = self._ends_by_data and all(source.is_finished() for source in self._sources)
                if not is_finished or buffers.valid.any():
                    yield buffers
                if is_finished:
                    return
            position += size * topology.batch_size
            size = 1 if self._ends_by_data else min(2 * size, batches_planned(topology.rows))

    def _run(self, position: int, num_batches: int) -> Iterator[tuple[Buffers, np.ndarray]]:
        """Yield the blocks of a run, with the positions of their rows."""
        rows = self._schedule.topology.rows
        run = self._schedule.block(position, num_batches)
        fills = [
            (source.plan(draws), draws.places) for source, draws in zip(self._sources, run.draws) if len(draws.places)
        ]
        step = rows * self._slots.num_batches
        for start in range(0, num_batches * rows, step):
            stop = min(start + step, num_batches * rows)
            buffers = self._buffers((stop - start) // rows)
            for fill, places in fills:
                part = slice(*np.searchsorted(places, (start, stop)).tolist())
                if part.start < part.stop:  # a rare source of a mix has rows in some blocks alone
                    fill(part, places[part] - start, buffers)
            count_done("assemble", samples=stop - start, num_bytes=buffers.bytes)
            yield buffers, run.positions[start:stop]

    def _buffers(self, num_batches: int) -> Buffers:
        try:
            return self._slots.take(num_batches)
        except MemoryError as error:
            raise PlanError(
                f"a block of {num_batches} batches takes {format_bytes(self._slots.bytes)}, more than there is memory",
                hint="use a smaller seq_len, batch_size or memory",
            ) from error

    def _split(self, buffers: Buffers, position: int) -> Iterator[LoadedBatch]:
        buffers.identities[~buffers.valid] = 0
        batch_size = self._schedule.topology.batch_size
        return map(LoadedBatch, buffers.batches(), count(position + batch_size, batch_size), buffers.cursors)

    def close(self) -> None:
        """Let go of the open shards; ``batches`` must be closed."""
        for source in self._sources:
            source.close()
