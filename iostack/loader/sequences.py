"""Batches of token sequences, assembled in blocks by the consumer's own thread.

Handing each batch through a thread would cost several times its gather; so threads only fetch shards and tokenise
units, and the consumer gathers up to 64 batches at once. The first blocks are small: the first batch comes at once.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from typing import Protocol

import numpy as np
import torch

from iostack.errors import PlanError
from iostack.loader.bad_samples import BadSamples
from iostack.loader.device import LoadedBatch
from iostack.loader.planning import LoaderPlan, PlannedSource
from iostack.loader.residency import Residency
from iostack.loader.schedule import Draws, Schedule
from iostack.loader.state import Cursors
from iostack.loader.streams import UnitSource
from iostack.loader.text import TextReader, TextUnit
from iostack.loader.tokens import TokenSource
from iostack.sizes import format_bytes

_MOST_BATCHES = 64
_MOST_BLOCK_BYTES = 16 << 20
_LOADED_BYTES_PER_TEXT_BYTE = 4
"""A unit of text in memory: the text, the ids of its documents, and the ids joined."""


class Buffers:
    """Fresh memory for the ``num_batches`` batches of a block; sources write into it by row."""

    def __init__(self, num_batches: int, rows: int, width: int) -> None:
        self.rows = rows
        self.num_batches = num_batches
        self.tokens = np.empty((num_batches * rows, width), np.int64)
        self.identities = np.empty(num_batches * rows, np.int64)
        self.valid = np.ones(num_batches * rows, np.bool_)
        self.cursors: list[Cursors] = [{} for _ in range(num_batches)]


class SequenceSource(Protocol):
    """Fills rows of a block with sequences."""

    def fill(self, draws: Draws, buffers: Buffers) -> None: ...
    def restore(self, cursors: Cursors, first_lane: int) -> None: ...
    def is_finished(self) -> bool: ...
    def wait_s(self) -> dict[str, float]: ...
    def stop(self) -> None: ...
    def close(self) -> None: ...


class TextSource:
    """One corpus of documents, tokenised on the fly."""

    def __init__(
        self,
        source: PlannedSource,
        plan: LoaderPlan,
        own_lanes: Sequence[int],
        bad_samples: BadSamples,
        *,
        epochs: int | None,
        lookahead_bytes: int,
        threads: int,
    ) -> None:
        assert source.tokenizer is not None
        assert plan.seq_len is not None
        self._number = source.number
        self._lanes = plan.lanes
        self._residency = Residency(source.corpus, lookahead_bytes)
        reader = TextReader(
            self._residency,
            source.tokenizer,
            source.transforms,
            bad_samples,
            number=source.number,
            seq_len=plan.seq_len,
            seed=source.seed,
            text_column=source.text_column,
        )
        unit_bytes = max(1, int(_LOADED_BYTES_PER_TEXT_BYTE * source.unit_bytes))
        self._units: UnitSource[TextUnit] = UnitSource(
            source.unit_plan(plan.lanes),
            reader.load,
            corpus=source.corpus,
            own_lanes=own_lanes,
            epochs=epochs,
            lookahead_units=max(1, lookahead_bytes // unit_bytes),
            threads=threads,
            what_is_missing=reader.what_is_missing,
        )

    def fill(self, draws: Draws, buffers: Buffers) -> None:
        """Write the next outputs of the drawn lanes, and the cursor after each, into the block."""
        times, lanes = np.divmod(draws.positions, self._lanes)
        for place, lane, time in zip(draws.places.tolist(), lanes.tolist(), times.tolist(), strict=True):
            stream = self._units.stream(lane)
            outputs, output, is_valid = stream.take(time)
            buffers.tokens[place] = outputs.sequence(output)
            buffers.identities[place] = outputs.identities[output]
            buffers.valid[place] = is_valid
            buffers.cursors[place // buffers.rows].setdefault(self._number, {})[lane] = stream.cursor

    def restore(self, cursors: Cursors, first_lane: int) -> None:
        """Put the lanes where the cursors say and begin loading from ``first_lane`` on."""
        self._units.restore(cursors.get(self._number, {}), first_lane)

    def is_finished(self) -> bool:
        """Return whether the finite pass is over on this rank."""
        return self._units.is_finished()

    def wait_s(self) -> dict[str, float]:
        """Return the seconds waited, by stage."""
        return {"decode": self._units.wait_s}

    def stop(self) -> None:
        """Stop loading and drop what was loaded ahead."""
        self._units.stop()

    def close(self) -> None:
        """Stop, and let go of the open shards."""
        self.stop()
        self._residency.close()


class IndexedSource:
    """One corpus of token shards."""

    def __init__(self, source: PlannedSource, plan: LoaderPlan, *, lookahead_bytes: int) -> None:
        assert plan.seq_len is not None
        self._tokens = TokenSource(
            source.corpus,
            source.indexed_plan(plan.lanes),
            number=source.number,
            seq_len=plan.seq_len,
            seed=source.seed,
            lookahead_bytes=lookahead_bytes,
        )

    def fill(self, draws: Draws, buffers: Buffers) -> None:
        """Gather the drawn sequences into the block."""
        self._tokens.fill(draws, buffers.tokens, buffers.identities)

    def restore(self, cursors: Cursors, first_lane: int) -> None:
        """Do nothing: the order is arithmetic."""

    def is_finished(self) -> bool:
        """Return True: the number of steps says when the pass ends."""
        return True

    def wait_s(self) -> dict[str, float]:
        """Return the seconds waited, by stage."""
        return {"origin": self._tokens.residency.wait_s}

    def stop(self) -> None:
        """Stop fetching."""
        self._tokens.residency.stop()

    def close(self) -> None:
        """Stop, and let go of the open shards."""
        self._tokens.close()


class SequenceBatches:
    """All batches of a loader of sequences, in order, from any position on."""

    def __init__(
        self, schedule: Schedule, sources: Sequence[SequenceSource], *, seq_len: int, ends_by_data: bool
    ) -> None:
        self._schedule = schedule
        self._sources = sources
        self._width = seq_len + 1
        self._ends_by_data = ends_by_data

    def batches(self, position: int, end: int | None, cursors: Cursors) -> Generator[LoadedBatch, None, None]:
        """Yield the batches from ``position`` on; ``end`` is the first position that is only padding, if known.

        No thread runs when it is closed. Where the data says when a pass ends, blocks are one batch: what a larger one
        held beyond the end would be tokenised for nothing.
        """
        try:
            yield from self._batches(position, end, cursors)
        finally:
            for source in self._sources:
                source.stop()

    def _batches(self, position: int, end: int | None, cursors: Cursors) -> Iterator[LoadedBatch]:
        topology = self._schedule.topology
        for source in self._sources:
            source.restore(cursors, position % self._schedule.lanes)
        most = (
            1
            if self._ends_by_data
            else max(1, min(_MOST_BATCHES, _MOST_BLOCK_BYTES // (topology.rows * self._width * 8)))
        )
        size = 1
        while end is None or position < end:
            if end is not None:
                size = min(size, -(-(end - position) // topology.batch_size))
            buffers, positions = self._fill(position, size)
            if end is not None:
                buffers.valid[positions >= end] = False
            is_finished = self._ends_by_data and all(source.is_finished() for source in self._sources)
            if not is_finished or buffers.valid.any():
                yield from self._split(buffers, position)
            if is_finished:
                return
            position += size * topology.batch_size
            size = min(2 * size, most)

    def _fill(self, position: int, size: int) -> tuple[Buffers, np.ndarray]:
        block = self._schedule.block(position, size)
        rows = self._schedule.topology.rows
        try:
            buffers = Buffers(size, rows, self._width)
        except MemoryError as error:
            needed = format_bytes(size * rows * self._width * 8)
            raise PlanError(
                f"a batch of {rows} x {self._width} tokens takes {needed}, more than there is memory",
                hint="use a smaller seq_len or batch_size",
            ) from error
        for source, draws in zip(self._sources, block.draws):
            if len(draws.places):
                source.fill(draws, buffers)
        return buffers, block.positions

    def _split(self, buffers: Buffers, position: int) -> Iterator[LoadedBatch]:
        shape = (buffers.num_batches, buffers.rows)
        buffers.identities[~buffers.valid] = 0
        tokens = torch.from_numpy(buffers.tokens).view(*shape, -1).unbind(0)
        valid = torch.from_numpy(buffers.valid).view(shape).unbind(0)
        identities = torch.from_numpy(buffers.identities).view(shape).unbind(0)
        for index in range(buffers.num_batches):
            position += self._schedule.topology.batch_size
            columns = {"tokens": tokens[index], "valid": valid[index], "sample_ids": identities[index]}
            yield LoadedBatch(columns, position, buffers.cursors[index])

    def wait_s(self) -> dict[str, float]:
        """Return the seconds waited so far, by stage."""
        total: dict[str, float] = {}
        for source in self._sources:
            for stage, seconds in source.wait_s().items():
                total[stage] = total.get(stage, 0.0) + seconds
        return total

    def close(self) -> None:
        """Let go of the open shards; ``batches`` must be closed."""
        for source in self._sources:
            source.close()
