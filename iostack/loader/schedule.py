"""From positions to draws: which source fills each row of the coming batches, and which of its samples.

positions of a block ──mix──> for each source: the rows it fills, and the positions of its own plan
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import lcm

import numpy as np
from numpy.typing import NDArray

from iostack.plan.mixing import Mix
from iostack.plan.topology import Topology, first_in_lane

Int64s = NDArray[np.int64]


@dataclass(frozen=True)
class Draws:
    """What one source gives to a block: parallel int64 arrays, ascending in every lane.

    ``places`` are the rows of the block that it fills; ``positions`` are those of the source's own plan.
    """

    places: Int64s
    positions: Int64s


@dataclass(frozen=True)
class Block:
    """The draws of successive batches of this rank, for each source in turn."""

    positions: Int64s
    draws: Sequence[Draws]


@dataclass(frozen=True)
class Schedule:
    """Deals positions to sources. ``mix`` is None where there is one source. Immutable."""

    topology: Topology
    lanes: int
    mix: Mix | None

    def block(self, start: int, num_batches: int) -> Block:
        """Return the draws of the ``num_batches`` batches whose first position is ``start``."""
        positions = self.topology.positions(start, num_batches)
        if self.mix is None:
            return Block(positions, [Draws(np.arange(len(positions)), positions)])
        sources = self.mix.sources(positions)
        draws = []
        for source in range(len(self.mix.weights)):
            (places,) = np.nonzero(sources == source)
            draws.append(Draws(places, self.source_positions(positions[places], source)))
        return Block(positions, draws)

    def draws(self, source: int, lane: int) -> bool:
        """Return whether this rank ever takes a sample of ``source`` from ``lane``, which is one of its own."""
        if self.mix is None:
            return True
        first = first_in_lane(self.topology, lane, self.lanes)
        period = lcm(self.lanes, self.topology.ranks)
        positions = first + period * np.arange(len(self.mix.cycle), dtype=np.int64)
        return bool((self.mix.sources(positions) == source).any())

    def source_positions(self, positions: Int64s, source: int) -> Int64s:
        """Return, for each position, that of the next draw of ``source`` in its lane, in the source's own plan."""
        if self.mix is None:
            return positions
        return self.mix.draws_before(positions, source) * self.lanes + positions % self.lanes
