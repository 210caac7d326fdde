"""Sequences of a unit of documents: which runs of its tokens each one is made of, and writing them into a block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from iostack.loader.order.schedule import Draws, Int64s
from iostack.loader.sequences.buffers import Buffers
from iostack.loader.sequences.pieces import RowWriter, RunRows, Streams, Tokens
from iostack.loader.sources import StreamedSource
from iostack.plan.identity import unit_identities
from iostack.plan.keyed import derive_key, permutation
from iostack.plan.packing import Pieces, cut, fit
from iostack.plan.sequences import unit_phase
from iostack.plan.skipping import SkipList
from iostack.plan.units import Unit

if TYPE_CHECKING:  # it imports torch, and worker processes pack units without it
    from iostack.loader.sequences.batches import Fill

_SEQUENCE_ORDER = 7
"""Purpose of keys; see ``iostack.plan.indexed``."""


@dataclass(frozen=True)
class BadRow:
    """A bad row of a unit, and the row whose text appears in its place: None where no row of the unit is good."""

    row: int
    error: Exception
    substitute: int | None


@dataclass(frozen=True)
class UnitSequences:
    """The sequences of one unit, in the order of its outputs.

    Output k is made of ``counts[k]`` runs, from run ``first[k]`` on: ``lengths`` tokens of ``tokens`` from ``starts`` on.
    """

    unit: Unit
    tokens: Tokens
    starts: Int64s
    lengths: Int64s
    first: Int64s
    counts: Int64s
    identities: Int64s
    bad_rows: Sequence[BadRow] = ()

    def __len__(self) -> int:
        return len(self.identities)

    @property
    def num_bytes(self) -> int:
        """What it takes in memory, or as a mapped shard."""
        arrays = (self.tokens, self.starts, self.lengths, self.first, self.counts, self.identities)
        return sum(array.nbytes for array in arrays)


@dataclass(frozen=True)
class Packer:
    """Makes sequences of the documents of units, but those of a skip list. ``packing`` is none, split or best_fit. Thread-safe."""

    packing: str
    seq_len: int
    seed: int
    number: int
    skip: SkipList

    def pack(self, unit: Unit, tokens: Tokens, begins: Int64s, lengths: Int64s) -> UnitSequences:
        """Return the sequences of a unit, permuted by (seed, epoch, unit).

        Document d is ``lengths[d]`` of ``tokens`` from ``begins[d]`` on. They must lie back to back, from the first token
        on, unless they are fitted whole.
        """
        pieces = fit(lengths, self.seq_len) if self.packing == "best_fit" else self._cut(unit, lengths)
        num_outputs = len(pieces.counts)
        outputs = permutation(derive_key(self.seed, _SEQUENCE_ORDER, unit.epoch, unit.number), num_outputs)
        identities = unit_identities(self.number, unit.number, num_outputs)
        outputs = outputs[~self.skip.holds(identities[outputs])]
        return UnitSequences(
            unit,
            tokens,
            begins[pieces.documents] + pieces.offsets,
            pieces.lengths,
            (np.cumsum(pieces.counts) - pieces.counts)[outputs],
            pieces.counts[outputs],
            identities[outputs],
        )

    def _cut(self, unit: Unit, lengths: Int64s) -> Pieces:
        total = int(lengths.sum())
        first = unit_phase(total, self.seq_len, self.seed, unit.epoch, unit.number)
        begins = first + self.seq_len * np.arange(max(total - 1, 0) // self.seq_len)
        if self.packing == "none":
            bounds = np.asarray([0, total], np.int64)
        else:
            bounds = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        return cut(bounds, begins, self.seq_len + 1)


class PackedSource(StreamedSource[UnitSequences]):
    """A source whose units give packed sequences."""

    taken_bytes = 0
    """Bytes of rows that are taken from the lanes at once; where these are more than one block, later ones cost less."""

    def plan(self, draws: Draws) -> Fill:
        """Return what writes the next outputs of the drawn lanes, and the cursor after each, into blocks."""
        return _RunFill(self, draws.positions)

    def taken(self, positions: Int64s) -> TakenRows:
        """Take the outputs at positions from the lanes; waits for units."""
        return TakenRows(self, positions)


class _RunFill:
    """Fills blocks, one after the other, with what was drawn for a run."""

    def __init__(self, source: PackedSource, positions: Int64s) -> None:
        self._source = source
        self._positions = positions
        self._first = self._stop = 0

    def __call__(self, part: slice, places: Int64s, buffers: Buffers) -> None:
        start, places_left = part.start, places
        while start < part.stop:
            if start == self._stop:
                num_rows = max(part.stop - start, self._source.taken_bytes // buffers.tokens[0].nbytes)
                self._first, self._stop = start, min(start + num_rows, len(self._positions))
                self._rows = self._source.taken(self._positions[self._first : self._stop])
            stop = min(part.stop, self._stop)
            self._rows.write(slice(start - self._first, stop - self._first), places_left[: stop - start], buffers)
            start, places_left = stop, places_left[stop - start :]


class TakenRows:
    """Sequences that were taken from lanes, to be written as rows of blocks, and the cursor of the lane after each."""

    def __init__(self, source: PackedSource, positions: Int64s) -> None:
        self._number = source.number
        times, lanes = np.divmod(positions, source.lanes)
        self._identities, self._valid = np.empty_like(positions), np.empty(len(positions), np.bool_)
        first, counts, which, draws, outputs = np.empty((5, len(positions)), np.int64)
        streams: dict[int, tuple[int, Tokens]] = {}  # by identity: units of one shard share its tokens
        starts, lengths, num_runs = [], [], 0
        for rows, (given, chosen, draw, is_valid) in source.take_all(positions):
            which[rows] = streams.setdefault(id(given.tokens), (len(streams), given.tokens))[0]
            first[rows] = given.first[chosen] + num_runs
            counts[rows] = given.counts[chosen]
            self._identities[rows] = given.identities[chosen]
            self._valid[rows] = is_valid
            draws[rows], outputs[rows] = draw, chosen
            starts.append(given.starts)
            lengths.append(given.lengths)
            num_runs += len(given.starts)
        self._lanes = lanes.tolist()
        self._cursors = list(zip(draws.tolist(), (outputs + 1).tolist(), (times + 1).tolist(), strict=True))
        self._streams = [tokens for _, tokens in streams.values()]
        stops = np.cumsum(counts)
        runs = np.arange(stops[-1]) + np.repeat(first - stops + counts, counts)
        self._which = np.repeat(which, counts)
        self._starts, self._lengths = np.concatenate(starts)[runs], np.concatenate(lengths)[runs]
        self._counts = counts
        self._writer: RowWriter | None = None

    def write(self, part: slice, places: Int64s, buffers: Buffers) -> None:
        """Write rows ``part``, which has a start and a stop, to ``places`` of a block, which ascend."""
        if self._writer is None:
            streams = Streams(self._streams, buffers.tokens.shape[1])
            runs = RunRows(streams, self._which, self._starts, self._lengths, self._counts)
            self._writer = RowWriter(runs, marks="position_ids" in buffers.arrays)
        self._writer.write(part, places, buffers)
        buffers.identities[places] = self._identities[part]
        buffers.valid[places] = self._valid[part]
        stops = np.searchsorted(places, np.arange(buffers.num_batches + 1) * buffers.rows) + part.start
        for cursors, (start, stop) in zip(buffers.cursors, pairwise(stops.tolist()), strict=True):
            if start < stop:
                after = zip(self._lanes[start:stop], self._cursors[start:stop], strict=True)
                cursors.setdefault(self._number, {}).update(after)
