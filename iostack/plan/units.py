"""Units: runs of rows inside which an operator that looks at the data (tokenise, filter) starts afresh.

How many outputs a unit gives is not known before it is read, so positions cannot name samples. Instead each lane walks
through units dealt to it by the same plan as samples (draw k of lane l is position k * L + l of the plan of units), and
its cursor says how far it is: (draw, outputs given of that unit, outputs given in all).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from iostack.plan.indexed import IndexedPlan
from iostack.plan.windows import round_lanes

Int64s = NDArray[np.int64]

_UNITS_PER_LANE = 4
_MOST_UNIT_BYTES = 1 << 20
_SEQUENCES_PER_UNIT = 32
_BYTES_PER_TOKEN = 4


@dataclass(frozen=True)
class Unit:
    """A run of ``num_rows`` rows of a shard (-1: all of it) in one epoch; ``number`` counts units over the corpus."""

    epoch: int
    shard: int
    first_row: int
    num_rows: int
    number: int


class UnitPlan:
    """The endless order of the units of one source.

    ``counts`` is int64[S]: rows per shard; -1 in all where unknown, which makes every shard one unit.
    """

    def __init__(self, counts: Int64s, unit_rows: int, *, seed: int, lanes: int, window: int) -> None:
        self._counts = counts
        self._unit_rows = unit_rows
        units = np.where(counts < 0, 1, -(-counts // unit_rows))
        self._first_unit = np.concatenate([np.zeros(1, np.int64), np.cumsum(units)])
        self.plan = IndexedPlan(units, seed=seed, lanes=lanes, window=window)

    @property
    def num_units(self) -> int:
        """Units of one epoch."""
        return self.plan.num_samples

    def unit(self, lane: int, draw: int) -> Unit:
        """Return the ``draw``-th unit of ``lane``."""
        rows = self.plan.locate(np.asarray([draw * self.plan.lanes + lane], np.int64))
        return self._unit(int(rows.epochs[0]), int(rows.shards[0]), int(rows.rows[0]))

    def substitutes(self, lane: int, draw: int) -> Iterator[Unit]:
        """Yield the units that the ``draw``-th unit of ``lane`` may borrow from, best first; see ``IndexedPlan.substitutes``.

        Any thread may call it.
        """
        rows = self.plan.substitutes(draw * self.plan.lanes + lane)
        for epoch, shard, number in zip(rows.epochs.tolist(), rows.shards.tolist(), rows.rows.tolist(), strict=True):
            yield self._unit(epoch, shard, number)

    def _unit(self, epoch: int, shard: int, number: int) -> Unit:
        total = int(self._counts[shard])
        first_row = number * self._unit_rows
        return Unit(
            epoch=epoch,
            shard=shard,
            first_row=first_row,
            num_rows=-1 if total < 0 else min(self._unit_rows, total - first_row),
            number=int(self._first_unit[shard]) + number,
        )

    def draws_in(self, lane: int, epochs: int) -> int:
        """Return how many units ``lane`` is dealt in the first ``epochs`` epochs."""
        return max(0, -(-(epochs * self.num_units - lane) // self.plan.lanes))


def choose_unit_rows(num_rows: int, total_bytes: int, seq_len: int) -> int:
    """Return the rows of a unit for text of ``total_bytes``: enough units to share, each long enough for many sequences."""
    wanted_bytes = total_bytes // (64 * _UNITS_PER_LANE)
    least_bytes = _SEQUENCES_PER_UNIT * _BYTES_PER_TOKEN * seq_len
    unit_bytes = min(max(wanted_bytes, least_bytes), max(_MOST_UNIT_BYTES, least_bytes))
    return max(1, round(unit_bytes * num_rows / max(total_bytes, 1)))


def choose_unit_lanes(ranks: int, num_units: int) -> int:
    """Return the lanes of a new run over units, with several units in each; see ``round_lanes``."""
    return round_lanes(ranks, num_units // _UNITS_PER_LANE)
