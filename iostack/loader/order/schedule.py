"""From positions to draws: which source fills each row of the coming batches, and which of its samples.

positions of a block ──mix──> for each source: the rows it fills, and the positions of its own plan
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import lcm

import numpy as np
from numpy.typing import NDArray

from iostack.plan.curriculum import Curriculum
from iostack.plan.mixing import LONGEST_CYCLE, Mix
from iostack.plan.topology import Topology, last_in_lane

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
    """Deals positions to sources. ``mix`` is None where there is one source. Immutable.

    ``end`` is the first position from which all only pads, where arithmetic can tell.
    """

    topology: Topology
    lanes: int
    mix: Mix | Curriculum | None
    end: int | None = None

    def block(self, start: int, num_batches: int) -> Block:
        """Return the draws of the ``num_batches`` batches whose first position is ``start``."""
        positions = self.topology.positions(start, num_batches)
        if self.mix is None:
            return Block(positions, [Draws(np.arange(len(positions)), positions)])
        sources = self.mix.sources(positions)
        draws = []
        for source in range(self.mix.num_sources):
            (places,) = np.nonzero(sources == source)
            draws.append(Draws(places, self.source_positions(positions[places], source)))
        return Block(positions, draws)

    def is_within(self, positions: Int64s) -> NDArray[np.bool_]:
        """Return which positions hold samples, and do not only pad the end of a pass."""
        if isinstance(self.mix, Curriculum):
            return self.mix.is_within(positions)
        return positions < self.end if self.end is not None else np.ones(len(positions), np.bool_)

    def least_given(self, source: int, lane: int, position: int) -> int:
        """Return how many outputs of ``source`` a state of this rank alone at ``position`` has seen given in ``lane``.

        That is up to this rank's own last turn there; where ranks share the lane, others may have taken more since.
        """
        period = lcm(self.lanes, self.topology.ranks)
        last = last_in_lane(self.topology, position, lane, self.lanes)
        while last >= 0:
            if self.mix is None:
                return last // self.lanes + 1
            start = self.mix.stretch_start(last)
            own = np.arange(last, max(start - 1, last - period * LONGEST_CYCLE), -period, dtype=np.int64)
            (drawn,) = np.nonzero(self.mix.sources(own) == source)
            if len(drawn):
                return int(self.source_positions(own[drawn[:1]], source)[0]) // self.lanes + 1
            last -= ((last - start) // period + 1) * period  # turns of a rank repeat after one cycle of a stretch
        return 0

    def source_positions(self, positions: Int64s, source: int) -> Int64s:
        """Return, for each position, that of the next draw of ``source`` in its lane, in the source's own plan."""
        if self.mix is None:
            return positions
        return self.mix.draws_before(positions, source) * self.lanes + positions % self.lanes
