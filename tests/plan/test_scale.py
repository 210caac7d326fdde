"""The plan at the size it is for: 1e6 shards, 1e10 samples, positions far beyond 32 and 53 bits."""

from __future__ import annotations

from itertools import accumulate

import numpy as np
import pytest

from iostack.plan.indexed import IndexedPlan
from iostack.plan.mixing import Mix
from iostack.plan.sequences import sequence_counts, sequence_starts
from iostack.plan.topology import Topology, next_in_lane
from iostack.plan.units import UnitPlan
from iostack.plan.windows import LaneGeometry

from . import reference
from .reference import Sample
from .strategies import located

NUM_SHARDS, SEED, LANES, WINDOW = 1_000_000, 11, 64, 500


@pytest.fixture(scope="module")
def counts() -> np.ndarray:
    uneven = 5_000 + np.arange(NUM_SHARDS, dtype=np.int64) * 7919 % 10_001
    uneven[::97] = 0
    uneven[1] += 10_000_000_000 - int(uneven.sum())
    return uneven


@pytest.fixture(scope="module")
def plan(counts: np.ndarray) -> IndexedPlan:
    return IndexedPlan(counts, seed=SEED, lanes=LANES, window=WINDOW)


@pytest.fixture(scope="module")
def shards_and_ends(counts: np.ndarray) -> dict[int, tuple[list[int], list[int]]]:
    """Shards and their running totals, in plain integers, of the epochs that the tests look at."""
    lists = {}
    for epoch in (0, 1):
        shards = reference.permutation(reference.derive_key(SEED, reference.SHARD_ORDER, epoch), NUM_SHARDS)
        sizes = counts.tolist()
        lists[epoch] = shards, list(accumulate(sizes[shard] for shard in shards))
    return lists


def at(position: int, num_samples: int, shards_and_ends: dict[int, tuple[list[int], list[int]]]) -> Sample:
    """Where one position stands, by integers alone."""
    epoch, within = divmod(position, num_samples)
    offset, segment = divmod(within, LANES)
    sizes = [num_samples // LANES + (number < num_samples % LANES) for number in range(LANES)]
    places = [number * reference.stride(LANES) % LANES for number in range(LANES)]
    start = sum(size for size, place in zip(sizes, places) if place < places[segment])
    shift = (2 * segment + 1) * WINDOW // (2 * LANES)
    borders = [0, *range(shift, sizes[segment], WINDOW), sizes[segment]]
    index = sum(border <= offset for border in borders[1:])
    key = reference.derive_key(SEED, reference.WINDOW_ORDER, epoch, segment, index)
    draws = reference.permutation(key, borders[index + 1] - borders[index])
    axis = start + borders[index] + draws[offset - borders[index]]
    shards, ends = shards_and_ends[epoch]
    place = next(number for number, end in enumerate(ends) if axis < end)
    return epoch, shards[place], axis - (ends[place - 1] if place else 0)


def test_single_positions_of_a_huge_corpus_equal_the_reference(
    plan: IndexedPlan, shards_and_ends: dict[int, tuple[list[int], list[int]]]
) -> None:
    size = plan.num_samples
    assert size == 10**10
    positions = [0, 63, 2**32 - 1, 2**32, size // 2 - 1, size // 2, size - 1, size, size + 2**33 + 5]
    assert located(plan, positions) == [at(position, size, shards_and_ends) for position in positions]


def test_a_window_across_the_border_of_32_bits_holds_each_of_its_samples_once() -> None:
    plan = IndexedPlan(np.asarray([2**33]), seed=2, lanes=1, window=1000)
    window = plan.geometry.window_at(0, 2**32)
    times = np.arange(window.first_time, window.first_time + window.length)
    rows = plan.locate(times).rows
    assert window.axis_start < 2**32 < window.axis_start + window.length
    assert np.array_equal(np.sort(rows), np.arange(window.axis_start, window.axis_start + window.length))


@pytest.mark.parametrize("position", [2**40 + 1, 2**53 + 1, 2**62 + 7])
def test_positions_of_a_long_run_equal_the_reference(position: int) -> None:
    counts = [3, 0, 8, 5]
    plan = IndexedPlan(np.asarray(counts), seed=3, lanes=6, window=4)
    source = reference.Source(counts, seed=3, lanes=6, window=4)
    positions = range(position, position + 40)
    assert located(plan, positions) == [source.at(position) for position in positions]
    topology = Topology(batch_size=6, rank=2, ranks=3)
    assert topology.positions(position, 4).tolist() == reference.rank_positions(position, 4, 6, 2, 3)
    assert next_in_lane(position, 5, 6) == next(number for number in range(position, position + 6) if number % 6 == 5)


def test_the_draws_of_a_long_run_are_counted_exactly() -> None:
    mix, step = Mix((5, 3, 1), 64), 10**15
    positions = np.asarray([step * 9, step * 9 + 4]) * 64 + 7
    assert [mix.draws_before(positions, source)[0] for source in range(3)] == [5 * step, 3 * step, step]
    advance = [int(np.diff(mix.draws_before(positions, source))[0]) for source in range(3)]
    expected = reference.Mixed((5, 3, 1), 64)
    assert advance == [expected.draws_before(7, 4, source) for source in range(3)]
    assert mix.sources(positions).tolist() == [expected.source_of(7), expected.source_of(4 * 64 + 7)]


def test_a_segment_of_a_huge_corpus_is_exact() -> None:
    geometry = LaneGeometry(num_samples=2**61 + 13, lanes=64, window=2**16)
    start, stop = geometry.segment_bounds(63)
    place = 63 * 39 % 64
    before = sum(number * 39 % 64 < place for number in range(13))  # of the segments that hold one sample more
    assert (start, stop) == (place * 2**55 + before, (place + 1) * 2**55 + before)
    window = geometry.window_at(63, 2**54)
    assert window.axis_start == start + (127 * 2**16 // 128) + (window.index - 1) * 2**16
    assert window.first_time <= 2**54 < window.first_time + window.length


def test_sequences_of_a_huge_shard_are_exact() -> None:
    tokens = np.asarray([2**41 + 3])
    last = int(sequence_counts(tokens, 4096)[0]) - 1
    start = int(sequence_starts(tokens, 4096, 0, np.asarray([2**40]), np.asarray([0]), np.asarray([last]))[0])
    phase = reference.keyed_hash(reference.derive_key(0, reference.PHASE, 2**40), 0) % 3
    assert start == phase + last * 4096
    assert start + 4097 <= 2**41 + 3


def test_the_units_of_a_huge_corpus_are_exact(counts: np.ndarray) -> None:
    plan = UnitPlan(counts, 100, seed=1, lanes=64, window=16)
    assert plan.num_units == sum(-(-count // 100) for count in counts.tolist())
    last = plan.unit(63, plan.draws_in(63, 1) - 1)
    assert last.epoch == 0
    assert last.num_rows == min(100, int(counts[last.shard]) - last.first_row)
    assert plan.unit(63, plan.draws_in(63, 1)).epoch == 1
