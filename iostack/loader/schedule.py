"""From positions to draws: which lane of which source fills each row of the coming batches.

positions of a block ──lane groups──> (lane, times) ──mix──> (source, lane, n-th draws of that source in that lane)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from iostack.plan.mixing import Mix
from iostack.plan.topology import Topology

Int64s = NDArray[np.int64]


@dataclass(frozen=True)
class LaneDraws:
    """Draws of one lane of one source: ``times`` ascending; ``places`` are the rows of the block that they fill."""

    lane: int
    places: Int64s | slice
    times: Int64s


@dataclass(frozen=True)
class Block:
    """The draws of ``num_batches`` successive batches of this rank, for each source in turn."""

    start: int
    num_batches: int
    positions: Int64s
    draws: Sequence[Sequence[LaneDraws]]


@dataclass(frozen=True)
class Schedule:
    """Deals positions to sources. ``mix`` is None where there is one source. Immutable."""

    topology: Topology
    lanes: int
    num_sources: int
    mix: Mix | None

    def block(self, start: int, num_batches: int) -> Block:
        """Return the draws of the batches whose first position is ``start``."""
        positions = self.topology.positions(start, num_batches)
        draws: list[list[LaneDraws]] = [[] for _ in range(self.num_sources)]
        lanes, times = positions % self.lanes, positions // self.lanes
        for group in self.topology.lane_groups(positions, self.lanes):
            lane, lane_times = int(lanes[group.start]), times[group]
            if self.mix is None:
                draws[0].append(LaneDraws(lane, group, lane_times))
                continue
            places = np.arange(len(positions), dtype=np.int64)[group]
            sources = self.mix.lane_sources(lane, lane_times)
            for source in np.unique(sources).tolist():
                chosen = sources == source
                source_times = self.mix.draws_before(lane, lane_times[chosen], source)
                draws[source].append(LaneDraws(lane, places[chosen], source_times))
        return Block(start, num_batches, positions, draws)

    def own_lanes(self) -> list[int]:
        """Return the lanes that this rank reads, alone or shared."""
        step = int(np.gcd(self.lanes, self.topology.ranks))
        return list(range(self.topology.rank % step, self.lanes, step))
