"""Mixing sources by weight: which source stands at a position, and which draw of that source it is.

One cycle of C positions holds each source as often as its integer weight, spread by Tijdeman's rule (R. Tijdeman, The
chairman assignment problem, Discrete Mathematics 32, 1980), so every prefix is within 1 of weight * n. C is coprime to
the number of lanes L; so each lane meets the whole cycle in C of its own steps, and every source advances equally in
every lane.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd
from numbers import Real

import numpy as np
from numpy.typing import NDArray

from iostack.errors import PlanError

Int64s = NDArray[np.int64]

_FINE_CYCLE = 1009
"""Length of the cycle, a prime, where the weights as given do not make one: an error of at most 1/1009 of the mix."""


def integer_weights(weights: Sequence[float], lanes: int) -> tuple[int, ...]:
    """Return integer weights whose sum is coprime to ``lanes``: as given where they are that already, else the closest.

    Raises:
        PlanError: a weight is not a positive number.
    """
    for index, weight in enumerate(weights):
        if not (isinstance(weight, Real) and weight > 0 and np.isfinite(weight)):
            raise PlanError(f"source {index} has weight {weight}: weights must be positive numbers")
    if len(weights) == 1:
        return (1,)
    if all(float(weight).is_integer() for weight in weights):
        whole = [int(weight) for weight in weights]
        divisor = gcd(*whole)
        whole = [weight // divisor for weight in whole]
        if sum(whole) <= _FINE_CYCLE and gcd(sum(whole), lanes) == 1:
            return tuple(whole)
    cycle = max(_FINE_CYCLE, 4 * len(weights))
    while gcd(cycle, lanes) != 1:
        cycle += 1
    return _largest_remainders(np.asarray(weights, np.float64), cycle)


def _largest_remainders(weights: NDArray[np.float64], cycle: int) -> tuple[int, ...]:
    exact = weights / weights.sum() * cycle
    whole = np.maximum(np.floor(exact).astype(np.int64), 1)
    while (missing := cycle - int(whole.sum())) != 0:
        gap = exact - whole
        if missing > 0:
            whole[int(np.argmax(gap))] += 1
        else:
            whole[int(np.argmin(np.where(whole > 1, gap, np.inf)))] -= 1
    return tuple(int(weight) for weight in whole)


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
    """The endless mix of sources over ``lanes``. Immutable; memory is cycle * sources * 4 bytes."""

    def __init__(self, weights: Sequence[int], lanes: int) -> None:
        if gcd(sum(weights), lanes) != 1:
            raise PlanError(f"the weights {tuple(weights)} sum to {sum(weights)}, not coprime to {lanes} lanes")
        self.weights = np.asarray(weights, np.int64)
        self.lanes = lanes
        self.cycle = tijdeman_cycle(weights)
        length = len(self.cycle)
        # A lane's successive positions stand at l, l + L, l + 2L, ... of the cycle: one order of residues for all lanes.
        residues = np.arange(length, dtype=np.int64) * lanes % length
        self._place_of_residue = np.empty(length, np.int64)
        self._place_of_residue[residues] = np.arange(length)
        walk = np.concatenate([self.cycle[residues]] * 2)
        self._before = np.zeros((2 * length + 1, len(weights)), np.int32)
        np.cumsum(walk[:, None] == np.arange(len(weights)), axis=0, out=self._before[1:])

    def sources(self, positions: Int64s) -> NDArray[np.int16]:
        """Return the source of each position."""
        sources: NDArray[np.int16] = self.cycle[positions % len(self.cycle)]
        return sources

    def draws_before(self, positions: Int64s, source: int) -> Int64s:
        """Return how many of the positions before each, in its own lane, belong to ``source``.

        So where ``source`` stands at a position of lane l, it is its n-th draw there: position n * L + l of its own plan.
        """
        length = len(self.cycle)
        times, lanes = np.divmod(positions, self.lanes)
        starts = self._place_of_residue[lanes % length]
        rounds, rest = np.divmod(times, length)
        within = self._before[starts + rest, source] - self._before[starts, source]
        draws: Int64s = rounds * self.weights[source] + within
        return draws
