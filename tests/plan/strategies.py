"""What the tests of the plan draw: small corpora of every shape, the same on every run."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st

from iostack.plan.indexed import IndexedPlan, Rows

from .reference import Sample, Source


def examples(number: int) -> settings:
    """Return the settings of a test with that many examples, the same on every run."""
    return settings(derandomize=True, deadline=None, max_examples=number)


@dataclass(frozen=True)
class Setup:
    """All that decides the order of one source."""

    counts: tuple[int, ...]
    seed: int
    lanes: int
    window: int

    @property
    def num_samples(self) -> int:
        return sum(self.counts)

    def plan(self) -> IndexedPlan:
        counts = np.asarray(self.counts, np.int64)
        return IndexedPlan(counts, seed=self.seed, lanes=self.lanes, window=self.window)

    def reference(self) -> Source:
        return Source(self.counts, seed=self.seed, lanes=self.lanes, window=self.window)


seeds = st.integers(0, 2**64 - 1)

corpora = st.builds(
    Setup,
    counts=st.lists(st.one_of(st.just(0), st.integers(0, 40)), min_size=1, max_size=9).filter(any).map(tuple),
    seed=seeds,
    lanes=st.integers(1, 24),
    window=st.integers(1, 30),
)
"""N < L, S < L, empty shards, windows larger than segments: all of them small enough for several epochs."""


@st.composite
def batches(draw: st.DrawFn) -> tuple[int, int]:
    """Draw (ranks, batch size) where the first divides the second."""
    ranks = draw(st.integers(1, 8))
    return ranks, ranks * draw(st.integers(1, 6))


@st.composite
def mixes(draw: st.DrawFn) -> tuple[list[int], int]:
    """Draw (weights, lanes); the sum of the first and the second may share factors."""
    return draw(st.lists(st.integers(1, 9), min_size=1, max_size=5)), draw(st.integers(1, 12))


def samples(rows: Rows) -> list[Sample]:
    """Return parallel arrays as a list of (epoch, shard, row)."""
    return list(zip(rows.epochs.tolist(), rows.shards.tolist(), rows.rows.tolist()))


def located(plan: IndexedPlan, positions: range | list[int]) -> list[Sample]:
    """Return what a plan says stands at positions."""
    return samples(plan.locate(np.asarray(list(positions), np.int64)))
