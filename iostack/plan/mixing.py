"""Mixing sources by weight: which source stands at a position, and which draw of that source it is.

One cycle of C positions holds each source as often as its integer weight, spread by Tijdeman's rule (R. Tijdeman, The
chairman assignment problem, Discrete Mathematics 32, 1980), so that every prefix is within 1 of weight * n.

Every lane must meet each source equally often, or a source's own lanes would drift apart. If C is coprime to the number of
lanes L, lane l meets all of the cycle at l, l + L, l + 2L, ... Otherwise, with d = gcd(C, L), it would meet only the places
congruent to l mod d for ever; so the cycle is turned by an offset after every lcm(C, L) positions, d offsets in turn, one
for each remainder mod d. The shares stay exact; a turn may add to the distance from weight * n: with two sources it stays
within 1, with more within 2 (at most 1.5 in 300 random mixes).

    cycle of 7:3, L = 4, d = 2:   offset 0: l = 0 meets places 0 4 8 2 6      then offset o, odd: 0+o 4+o 8+o 2+o 6+o
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import gcd, lcm
from numbers import Real

import numpy as np
from numpy.typing import NDArray

from iostack.errors import PlanError

Int64s = NDArray[np.int64]

LONGEST_CYCLE = 10_000


def integer_weights(weights: Sequence[float], *, names: Sequence[int] | None = None) -> tuple[int, ...]:
    """Return integer weights: in proportion exactly, where their sum is at most 10,000, else rounded to a sum of that.

    Decimal fractions count as they are written: 0.7 and 0.3 give (7, 3). ``names`` are the sources' numbers for messages.

    Raises:
        PlanError: a weight is not a positive number, or too small a share for a cycle of 10,000.
    """
    names = range(len(weights)) if names is None else names
    for index, weight in zip(names, weights, strict=True):
        if not (isinstance(weight, Real) and weight > 0 and np.isfinite(weight)):
            raise PlanError(f"source {index} has weight {weight}: weights must be positive numbers")
    exact = [Fraction(repr(float(weight))) for weight in weights]
    unit = lcm(*(weight.denominator for weight in exact))
    whole = [int(weight * unit) for weight in exact]
    divisor = gcd(*whole)
    whole = [weight // divisor for weight in whole]
    if sum(whole) <= LONGEST_CYCLE:
        return tuple(whole)
    total = sum(exact)
    shares = [weight / total * LONGEST_CYCLE for weight in exact]
    for index, weight, share in zip(names, weights, shares, strict=True):
        if share < Fraction(1, 2):
            raise PlanError(
                f"source {index} has weight {weight}, less than 1/{2 * LONGEST_CYCLE} of the mix",
                hint="give it a larger weight, or leave it out",
            )
    return _largest_remainders(shares)


def _largest_remainders(shares: Sequence[Fraction]) -> tuple[int, ...]:
    """Round shares to at least 1 each, keeping their sum."""
    whole = [max(1, int(share)) for share in shares]
    while (missing := round(sum(shares)) - sum(whole)) != 0:
        gaps = [share - weight for share, weight in zip(shares, whole)]
        if missing > 0:
            whole[gaps.index(max(gaps))] += 1
        else:
            whole[gaps.index(min(gap for gap, weight in zip(gaps, whole) if weight > 1))] -= 1
    return tuple(whole)


def tijdeman_cycle(weights: Sequence[int]) -> NDArray[np.int16]:
    """Return the source of each position of one cycle of sum(weights); int16[C].

    At each step, of the sources that must come now or soon, the one whose turn ends first is taken; of several, the first.
    O(C * sources). All but one correctly rounded division is in integers, so that rounding cannot decide a tie.
    """
    num_sources = len(weights)
    cycle = sum(weights)
    if num_sources == 1:
        return np.zeros(cycle, np.int16)
    whole = np.asarray(weights, np.int64)
    scale = 2 * num_sources - 2
    given = np.zeros(num_sources, np.int64)
    order = np.empty(cycle, np.int16)
    for step in range(1, cycle + 1):
        ready = scale * (whole * step - cycle * given) >= cycle
        deadline = np.where(ready, (scale * given + scale - 1) / whole, np.inf)
        chosen = int(np.argmin(deadline))
        order[step - 1] = chosen
        given[chosen] += 1
    return order


class Mix:
    """The endless mix of sources over ``lanes``. Immutable; memory is some 8 bytes for each source and place of the cycle."""

    def __init__(self, weights: Sequence[int], lanes: int) -> None:
        self.weights = np.asarray(weights, np.int64)
        self.num_sources = len(weights)
        self.lanes = lanes
        self.cycle = tijdeman_cycle(weights)
        length, every = len(self.cycle), np.arange(len(weights))
        num_classes = gcd(length, lanes)
        self._turn = length // num_classes
        """How many times of a lane lie between two turns of the cycle: after them it has met its class of places once."""
        self.offsets = _turn_offsets(self.cycle, self.weights, num_classes)
        # Lanes walk through a class of places in one order, from different starts: the walk of each class, twice over.
        steps = np.arange(self._turn, dtype=np.int64) * lanes
        walks = (np.arange(num_classes)[:, None] + steps) % length
        self._place_in_walk = np.empty(length, np.int64)
        self._place_in_walk[walks] = 2 * self._turn * np.arange(num_classes)[:, None] + np.arange(self._turn)
        twice = self.cycle[np.concatenate([walks, walks], axis=1).ravel()]
        self._before = np.zeros((2 * length + 1, len(weights)), np.int32)
        np.cumsum(twice[:, None] == every, axis=0, out=self._before[1:])
        # What a lane meets in whole turns: its class, then the next, ...
        of_classes = (self.cycle[walks][:, :, None] == every).sum(axis=1)
        self._before_class = np.zeros((2 * num_classes + 1, len(weights)), np.int64)
        np.cumsum(np.concatenate([of_classes, of_classes]), axis=0, out=self._before_class[1:])

    def sources(self, positions: Int64s) -> NDArray[np.int16]:
        """Return the source of each position."""
        turns = positions // (self.lanes * self._turn) % len(self.offsets)
        sources: NDArray[np.int16] = self.cycle[(positions + self.offsets[turns]) % len(self.cycle)]
        return sources

    def stretch_start(self, position: int) -> int:
        """Return 0: one cycle goes on for ever."""
        return 0

    def draws_before(self, positions: Int64s, source: int) -> Int64s:
        """Return how many of the positions before each, in its own lane, belong to ``source``.

        So where ``source`` stands at a position of lane l, it is its n-th draw there: position n * L + l of its own plan.
        """
        times, lanes = np.divmod(positions, self.lanes)
        rounds, rest = np.divmod(times, len(self.cycle))
        turns, within = np.divmod(rest, self._turn)
        classes = lanes % len(self.offsets)
        whole_turns = self._before_class[classes + turns, source] - self._before_class[classes, source]
        starts = self._place_in_walk[(lanes + self.offsets[turns]) % len(self.cycle)]
        this_turn = self._before[starts + within, source] - self._before[starts, source]
        draws: Int64s = rounds * self.weights[source] + whole_turns + this_turn
        return draws


def _turn_offsets(cycle: NDArray[np.int16], weights: Int64s, num_classes: int) -> Int64s:
    """Return, for each remainder mod ``num_classes``, the offset from which the cycle stays closest to the weights."""
    length = len(cycle)
    counts = np.zeros((length, len(weights)), np.int64)
    np.cumsum(cycle[:-1, None] == np.arange(len(weights)), axis=0, out=counts[1:])
    ahead = counts * length - np.arange(length)[:, None] * weights  # of weight * n, in units of 1 / length
    worst = np.maximum(ahead.max(axis=0) - ahead, ahead - ahead.min(axis=0)).max(axis=1)
    offsets = [int(np.argmin(worst[first::num_classes])) * num_classes + first for first in range(num_classes)]
    return np.asarray([0, *offsets[1:]], np.int64)
