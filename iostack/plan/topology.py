"""How positions fall to ranks: step t is the positions [tB, (t + 1)B), and rank r of R takes those congruent to r."""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd, lcm

import numpy as np
from numpy.typing import NDArray

from iostack.errors import PlanError

Int64s = NDArray[np.int64]


@dataclass(frozen=True)
class Topology:
    """``batch_size`` samples a step over ``ranks`` data ranks, of which this is ``rank``.

    Raises:
        PlanError: the ranks do not divide the batch size; the hint names the nearest sizes.
    """

    batch_size: int
    rank: int = 0
    ranks: int = 1

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.ranks < 1 or not 0 <= self.rank < self.ranks:
            raise PlanError(f"batch_size {self.batch_size}, rank {self.rank} of {self.ranks} ranks is impossible")
        if self.batch_size % self.ranks:
            below = self.batch_size // self.ranks * self.ranks
            near = [str(size) for size in (below, below + self.ranks) if size]
            raise PlanError(
                f"batch_size {self.batch_size} is not divisible by {self.ranks} data ranks",
                hint=f"use a batch size of {' or '.join(near)}",
            )

    @property
    def rows(self) -> int:
        """Rows of this rank's part of a batch."""
        return self.batch_size // self.ranks

    def positions(self, start: int, num_batches: int) -> Int64s:
        """Return this rank's positions, in order, of ``num_batches`` steps whose first position is ``start``."""
        first = start + (self.rank - start) % self.ranks
        return np.arange(first, start + num_batches * self.batch_size, self.ranks, dtype=np.int64)


def own_lanes(topology: Topology, lanes: int) -> list[int]:
    """Return the lanes that a rank reads: alone where the ranks divide the lanes, else shared with others."""
    step = gcd(lanes, topology.ranks)
    return list(range(topology.rank % step, lanes, step))


def first_in_lane(topology: Topology, lane: int, lanes: int) -> int:
    """Return the first position of ``lane`` that falls to this rank; further ones follow every lcm(lanes, ranks)."""
    return next(
        position
        for position in range(lane, lanes * topology.ranks, lanes)
        if position % topology.ranks == topology.rank
    )


def last_in_lane(topology: Topology, position: int, lane: int, lanes: int) -> int:
    """Return the last position before ``position`` that belongs to ``lane`` and this rank; negative if there is none."""
    first, period = first_in_lane(topology, lane, lanes), lcm(lanes, topology.ranks)
    return first + (position - 1 - first) // period * period


def next_in_lane(position: int, lane: int, lanes: int) -> int:
    """Return the first position from ``position`` on that belongs to ``lane``."""
    return position + (lane - position) % lanes
