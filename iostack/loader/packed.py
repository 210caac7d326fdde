"""Sequences of a unit of documents: which runs of its tokens each one is made of, and writing them into a block."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from iostack.loader.buffers import Buffers
from iostack.loader.pieces import RowWriter, RunRows, Streams, Tokens
from iostack.loader.schedule import Int64s
from iostack.loader.sources import Taken
from iostack.plan.identity import unit_identities
from iostack.plan.keyed import derive_key, permutation
from iostack.plan.packing import Pieces, cut, fit
from iostack.plan.sequences import unit_phase
from iostack.plan.skipping import SkipList
from iostack.plan.units import Unit

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

    Output k is made of the runs [``first[k]``, ``stop[k]``): ``lengths`` tokens of ``tokens`` from ``starts`` on.
    """

    unit: Unit
    tokens: Tokens
    starts: Int64s
    lengths: Int64s
    first: list[int]
    stop: list[int]
    identities: Int64s
    bad_rows: Sequence[BadRow] = ()

    def __len__(self) -> int:
        return len(self.identities)

    @property
    def num_bytes(self) -> int:
        """What it takes in memory, or as a mapped shard."""
        arrays = (self.tokens, self.starts, self.lengths, self.identities)
        return sum(array.nbytes for array in arrays) + sys.getsizeof(self.first) + sys.getsizeof(self.stop)


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
        stops = np.cumsum(pieces.counts)
        return UnitSequences(
            unit,
            tokens,
            begins[pieces.documents] + pieces.offsets,
            pieces.lengths,
            (stops - pieces.counts)[outputs].tolist(),
            stops[outputs].tolist(),
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


def write_outputs(taken: Iterable[Taken[UnitSequences]], number: int, places: Int64s, buffers: Buffers) -> None:
    """Write what lanes of source ``number`` gave to ``places`` of a block, and the cursor after each."""
    streams: dict[int, tuple[int, Tokens]] = {}  # by identity: units of one shard share its tokens
    which, starts, lengths, counts = [], [], [], []
    for place, given, output, is_valid, lane, cursor in taken:
        which.append(streams.setdefault(id(given.tokens), (len(streams), given.tokens))[0])
        chosen = slice(given.first[output], given.stop[output])
        starts.append(given.starts[chosen])
        lengths.append(given.lengths[chosen])
        counts.append(chosen.stop - chosen.start)
        buffers.identities[place] = given.identities[output]
        buffers.valid[place] = is_valid
        buffers.cursors[place // buffers.rows].setdefault(number, {})[lane] = cursor
    if not counts:
        return
    runs_per_row = np.asarray(counts, np.int64)
    runs = RunRows(
        Streams([tokens for _, tokens in streams.values()], buffers.tokens.shape[1]),
        np.repeat(which, runs_per_row),
        np.concatenate(starts),
        np.concatenate(lengths),
        runs_per_row,
    )
    writer = RowWriter(runs, marks="position_ids" in buffers.arrays)
    writer.write(slice(0, len(counts)), places, buffers)
