"""Batches of token sequences, assembled in blocks by the consumer's own thread.

Handing each batch through a thread would cost several times its gather; so threads only fetch shards and tokenise
units, and the consumer gathers up to 64 batches at once. The first blocks are small: the first batch comes at once.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from itertools import count
from typing import Protocol

import numpy as np
import torch

from iostack.errors import PlanError
from iostack.loader.buffers import Buffers, Columns
from iostack.loader.device import LoadedBatch
from iostack.loader.schedule import Draws, Schedule
from iostack.loader.sources import Source, wait_s_by_stage
from iostack.loader.state import Cursors
from iostack.sizes import format_bytes

_MOST_BATCHES = 64
_MOST_BLOCK_BYTES = 16 << 20


class SequenceSource(Source, Protocol):
    """Fills rows of a block with sequences."""

    def fill(self, draws: Draws, buffers: Buffers) -> None:
        """Write the drawn sequences, their identities, whether they are valid, and the cursors after each batch."""
        ...


class SequenceBatches:
    """All batches of a loader of sequences, in order, from any position on."""

    def __init__(
        self, schedule: Schedule, sources: Sequence[SequenceSource], *, columns: Columns, ends_by_data: bool
    ) -> None:
        self._schedule = schedule
        self._sources = sources
        self._columns = columns
        self._row_bytes = sum(column.row_bytes for column in columns.values())
        self._ends_by_data = ends_by_data

    def batches(self, position: int, end: int | None, cursors: Cursors) -> Generator[LoadedBatch, None, None]:
        """Yield the batches from ``position`` on; ``end`` is the first position that is only padding, if known.

        No thread runs when it is closed. Where the data says when a pass ends, blocks are one batch: what a larger one
        held beyond the end would be tokenised for nothing.
        """
        try:
            for source in self._sources:
                source.restore(cursors, position % self._schedule.lanes)
            for block in self._blocks(position, end):
                yield from block
        finally:
            for source in self._sources:
                source.stop()

    def _blocks(self, position: int, end: int | None) -> Iterator[list[LoadedBatch]]:
        topology = self._schedule.topology
        most = max(1, min(_MOST_BATCHES, _MOST_BLOCK_BYTES // (topology.rows * self._row_bytes)))
        if self._ends_by_data:
            most = 1
        size = 1
        while end is None or position < end:
            if end is not None:
                size = min(size, -(-(end - position) // topology.batch_size))
            buffers, positions = self._fill(position, size)
            if end is not None:
                buffers.valid[positions >= end] = False
            is_finished = self._ends_by_data and all(source.is_finished() for source in self._sources)
            if not is_finished or buffers.valid.any():
                yield self._split(buffers, position)
            if is_finished:
                return
            position += size * topology.batch_size
            size = min(2 * size, most)

    def _fill(self, position: int, size: int) -> tuple[Buffers, np.ndarray]:
        block = self._schedule.block(position, size)
        rows = self._schedule.topology.rows
        try:
            buffers = Buffers(size, rows, self._columns)
        except MemoryError as error:
            needed = format_bytes(size * rows * self._row_bytes)
            raise PlanError(
                f"a batch of {rows} x {self._columns['tokens'].width} tokens takes {needed}, more than there is memory",
                hint="use a smaller seq_len or batch_size",
            ) from error
        for source, draws in zip(self._sources, block.draws):
            if len(draws.places):
                source.fill(draws, buffers)
        return buffers, block.positions

    def _split(self, buffers: Buffers, position: int) -> list[LoadedBatch]:
        buffers.identities[~buffers.valid] = 0
        shape = (buffers.num_batches, buffers.rows)
        columns = [
            torch.from_numpy(array).view(*shape, *array.shape[1:]).unbind(0) for array in buffers.arrays.values()
        ]
        names = tuple(buffers.arrays)
        next_positions = count(position + self._schedule.topology.batch_size, self._schedule.topology.batch_size)
        return [
            LoadedBatch(dict(zip(names, batch)), next_position, cursors)
            for *batch, next_position, cursors in zip(*columns, next_positions, buffers.cursors)
        ]

    def wait_s(self) -> dict[str, float]:
        """Return the seconds that the consumer has waited so far, by stage."""
        return wait_s_by_stage(source.waited() for source in self._sources)

    def close(self) -> None:
        """Let go of the open shards; ``batches`` must be closed."""
        for source in self._sources:
            source.close()
