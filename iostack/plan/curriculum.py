"""A mix whose weights change: by phases, and where a source is used up.

Each lane goes through *stretches*. Inside one, the sources stand as one ``Mix`` says, counted from the stretch's first
time in that lane; a stretch ends where the next phase begins, which is the same time in all lanes, or with the last draw
that a limited source has left in that lane. What a lane has drawn before a stretch stands in a table, so any position is
found by one lookup, and every source is drawn exactly as often as its limit says.

    phases:    |------ 3:1 ------|------- 1:1 --------|          source 1 is used up here and there
    lane 0:    |------ 3:1 ------|---- 1:1 ----|------ 1:0 ...
    lane 1:    |------ 3:1 ------|----- 1:1 ----|----- 1:0 ...
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd

import numpy as np
from numpy.typing import NDArray

from iostack.plan.mixing import Mix

Int64s = NDArray[np.int64]

_NEVER = 1 << 62


@dataclass(frozen=True)
class Phase:
    """From the first multiple of the lanes at or after ``start`` samples on, sources stand by ``weights``; zeros allowed."""

    start: int
    weights: tuple[int, ...]


class Curriculum:
    """The mix of ``phases`` over ``lanes``, where source s gives at most ``limits[s]`` samples: the first of its own plan.

    ``phases`` are in order, the first from 0 on, each with a source that has a weight; limits are at least 1.

    A phase whose sources are used up ends early, lane by lane; after the last one's a lane is over. Immutable; memory is
    8 bytes for each lane, stretch and source.
    """

    def __init__(self, phases: Sequence[Phase], lanes: int, limits: Sequence[int | None]) -> None:
        self.lanes = lanes
        self.num_sources = len(limits)
        self._mixes: list[tuple[Mix, tuple[int, ...]]] = []
        self._numbers: dict[tuple[int, ...], int] = {}
        self._build(phases, _limits_by_lane(limits, lanes))

    def sources(self, positions: Int64s) -> NDArray[np.int16]:
        """Return the source of each position."""
        sources = np.empty(len(positions), np.int16)
        _, inner, numbers = self._stretches(positions)
        for number in np.unique(numbers).tolist():
            mix, members = self._mixes[number]
            chosen = numbers == number
            sources[chosen] = np.asarray(members, np.int16)[mix.sources(inner[chosen])]
        return sources

    def draws_before(self, positions: Int64s, source: int) -> Int64s:
        """Return how many of the positions before each, in its own lane, belong to ``source``."""
        stretches, inner, numbers = self._stretches(positions)
        draws: Int64s = self._carried[positions % self.lanes, stretches, source]
        for number in np.unique(numbers).tolist():
            mix, members = self._mixes[number]
            if source in members:
                chosen = numbers == number
                draws[chosen] += mix.draws_before(inner[chosen], members.index(source))
        return draws

    def stretch_start(self, position: int) -> int:
        """Return the first position of the stretch of a lane that ``position`` lies in; inside it one cycle repeats."""
        _, inner, _ = self._stretches(np.asarray([position], np.int64))
        return position - int(inner[0]) + position % self.lanes

    def is_within(self, positions: Int64s) -> NDArray[np.bool_]:
        """Return which positions lie before the end of their lane."""
        within: NDArray[np.bool_] = positions // self.lanes < self._ends[positions % self.lanes]
        return within

    @property
    def end(self) -> int | None:
        """The first position from which no lane gives anything; None if the mix is endless."""
        if int(self._ends.max()) >= _NEVER:
            return None
        (alive,) = np.nonzero(self._ends)
        return int(((self._ends[alive] - 1) * self.lanes + alive).max(initial=-1)) + 1

    def _stretches(self, positions: Int64s) -> tuple[Int64s, Int64s, Int64s]:
        """Return the stretch of each position, the position counted from its beginning, and the number of its mix."""
        times, lanes = np.divmod(positions, self.lanes)
        stretches = (self._starts[lanes, 1:] <= times[:, None]).sum(axis=1, dtype=np.int64)
        inner = positions - self._starts[lanes, stretches] * self.lanes
        return stretches, inner, self._numbers_by_lane[lanes, stretches]

    def _build(self, phases: Sequence[Phase], limits: Int64s) -> None:
        """Lay out the stretches of all lanes, one column of the tables after the other."""
        borders = np.asarray([-(-phase.start // self.lanes) for phase in phases] + [_NEVER], np.int64)
        weights = np.asarray([phase.weights for phase in phases], np.int64)
        times, drawn = np.zeros(self.lanes, np.int64), np.zeros_like(limits)
        current = np.zeros(self.lanes, np.int64)
        ends = np.full(self.lanes, _NEVER, np.int64)
        columns: list[tuple[Int64s, Int64s, Int64s]] = []
        open_lanes = np.arange(self.lanes)
        while len(open_lanes):
            # A phase is over where its time is, or where nothing that it draws is left.
            while True:
                left = weights[current[open_lanes]] * (drawn[open_lanes] < limits[open_lanes])
                is_over = (times[open_lanes] >= borders[current[open_lanes] + 1]) | ~left.any(axis=1)
                ended = is_over & (current[open_lanes] == len(phases) - 1)
                ends[open_lanes[ended]] = times[open_lanes[ended]]
                current[open_lanes[is_over & ~ended]] += 1
                open_lanes, left, is_over = open_lanes[~ended], left[~ended], is_over[~ended]
                if not is_over.any():
                    break
            numbers = np.full(self.lanes, -1, np.int64)
            starts, carried = times.copy(), drawn.copy()
            for row in np.unique(left, axis=0):
                lanes = open_lanes[(left == row).all(axis=1)]
                numbers[lanes] = self._number_of(row)
                times[lanes] = self._stretch_ends(row, lanes, times, drawn, limits, borders[current[lanes] + 1])
                bounded = lanes[times[lanes] < _NEVER]
                drawn[bounded] += self._drawn_in(row, bounded, times[bounded] - starts[bounded])
            columns.append((starts, numbers, carried))
            open_lanes = open_lanes[times[open_lanes] < _NEVER]
        self._store(columns, ends)

    def _store(self, columns: Sequence[tuple[Int64s, Int64s, Int64s]], ends: Int64s) -> None:
        self._ends = ends
        self._starts = np.stack([np.where(numbers < 0, _NEVER, starts) for starts, numbers, _ in columns], axis=1)
        self._numbers_by_lane = np.stack([numbers for _, numbers, _ in columns], axis=1)
        self._carried = np.stack([carried for _, _, carried in columns], axis=1)
        # A lane that never gives anything still fills the rows that pad a batch.
        self._starts[:, 0] = 0
        self._numbers_by_lane[self._numbers_by_lane[:, 0] < 0, 0] = 0

    def _number_of(self, weights: Int64s) -> int:
        """Return the number of the mix of some weights; sources without weight are no members of it."""
        members = tuple(np.flatnonzero(weights).tolist())
        whole = weights[weights > 0].tolist()
        key = tuple((weights // gcd(*whole)).tolist())
        if key not in self._numbers:
            self._numbers[key] = len(self._mixes)
            self._mixes.append((Mix([weight for weight in key if weight], self.lanes), members))
        return self._numbers[key]

    def _drawn_in(self, weights: Int64s, lanes: Int64s, lengths: Int64s) -> Int64s:
        """Return the draws of every source in the first ``lengths`` times of a stretch; int64[lanes, sources]."""
        mix, members = self._mixes[self._number_of(weights)]
        drawn = np.zeros((len(lanes), self.num_sources), np.int64)
        for member, source in enumerate(members):
            drawn[:, source] = mix.draws_before(lengths * self.lanes + lanes, member)
        return drawn

    def _stretch_ends(
        self, weights: Int64s, lanes: Int64s, times: Int64s, drawn: Int64s, limits: Int64s, borders: Int64s
    ) -> Int64s:
        """Return when the stretch that begins now ends in each lane: at its border, or where a source is used up."""
        mix, members = self._mixes[self._number_of(weights)]
        ends = borders.copy()
        for member, source in enumerate(members):
            left = limits[lanes, source] - drawn[lanes, source]
            (limited,) = np.nonzero(left < _NEVER // 2)
            if len(limited):
                lengths = _time_of_draw(mix, member, lanes[limited], left[limited])
                ends[limited] = np.minimum(ends[limited], times[lanes[limited]] + lengths)
        return ends


def _time_of_draw(mix: Mix, member: int, lanes: Int64s, numbers: Int64s) -> Int64s:
    """Return how many times of each lane it takes until ``member`` was drawn ``numbers`` times, at least 1; by bisection."""
    cycle = len(mix.cycle)
    rounds = (numbers - 1) // mix.weights[member]
    low, high = rounds * cycle, (rounds + 1) * cycle  # every cycle of a lane holds each member by its weight
    while (high - low > 1).any():
        middle = (low + high) // 2
        has_all = mix.draws_before(middle * mix.lanes + lanes, member) >= numbers
        low, high = np.where(has_all, low, middle), np.where(has_all, middle, high)
    return np.asarray(high, np.int64)


def _limits_by_lane(limits: Sequence[int | None], lanes: int) -> Int64s:
    """Return the draws that each lane has of each source: position n * L + l of its plan lies within its limit."""
    most = [_NEVER if limit is None else limit for limit in limits]
    lane = np.arange(lanes, dtype=np.int64)[:, None]
    by_lane: Int64s = np.asarray(np.maximum(0, -(-(np.asarray(most, np.int64) - lane) // lanes)), np.int64)
    by_lane[:, [limit is None for limit in limits]] = _NEVER
    return by_lane
