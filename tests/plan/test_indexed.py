"""The order of one source: equal to the brute-force reference, and a permutation of the corpus in every epoch."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from iostack.errors import PlanError
from iostack.plan.indexed import IndexedPlan

from .strategies import Setup, corpora, examples, located, samples, seeds

FEWER_SAMPLES_THAN_LANES = Setup(counts=(2, 0, 1), seed=3, lanes=8, window=4)
FEWER_SHARDS_THAN_LANES = Setup(counts=(41, 7), seed=4, lanes=12, window=3)
ONE_SAMPLE = Setup(counts=(1,), seed=5, lanes=3, window=1)
EVEN = Setup(counts=(16,) * 8, seed=6, lanes=8, window=8)


@examples(80)
@given(setup=corpora)
@example(setup=FEWER_SAMPLES_THAN_LANES)
@example(setup=FEWER_SHARDS_THAN_LANES)
@example(setup=ONE_SAMPLE)
@example(setup=EVEN)
def test_every_position_of_four_epochs_equals_the_reference(setup: Setup) -> None:
    positions = range(4 * setup.num_samples + 1)
    reference = setup.reference()
    assert located(setup.plan(), positions) == [reference.at(position) for position in positions]


@examples(80)
@given(setup=corpora)
@example(setup=FEWER_SAMPLES_THAN_LANES)
@example(setup=FEWER_SHARDS_THAN_LANES)
@example(setup=ONE_SAMPLE)
@example(setup=EVEN)
def test_every_epoch_is_a_permutation_of_the_corpus(setup: Setup) -> None:
    plan, size = setup.plan(), setup.num_samples
    for epoch in range(4):
        found = located(plan, range(epoch * size, (epoch + 1) * size))
        assert sorted(found) == [
            (epoch, shard, row) for shard, count in enumerate(setup.counts) for row in range(count)
        ]


@examples(60)
@given(setup=corpora, data=st.data())
def test_positions_in_any_order_and_repeated_are_found_one_by_one(setup: Setup, data: st.DataObject) -> None:
    positions = data.draw(st.lists(st.integers(0, 4 * setup.num_samples), max_size=40))
    reference = setup.reference()
    assert located(setup.plan(), positions) == [reference.at(position) for position in positions]


def test_a_repeated_position_does_not_shift_the_ones_after_it() -> None:
    plan = Setup(counts=(100,), seed=0, lanes=1, window=50).plan()
    first, _, third = located(plan, [0, 1, 2])
    assert located(plan, [0, 0, 2]) == [first, first, third]


@examples(60)
@given(setup=corpora, data=st.data())
def test_what_was_looked_up_before_changes_nothing(setup: Setup, data: st.DataObject) -> None:
    reference, plan = setup.reference(), setup.plan()
    calls = st.lists(st.integers(0, 4 * setup.num_samples), max_size=12)
    for positions in data.draw(st.lists(calls, min_size=1, max_size=6)):
        assert located(plan, positions) == [reference.at(position) for position in positions]
        if positions:
            assert samples(plan.substitutes(positions[0])) == reference.substitutes(positions[0])


def test_no_positions_have_no_rows() -> None:
    assert located(EVEN.plan(), []) == []


@examples(60)
@given(setup=corpora, data=st.data())
def test_substitutes_are_the_draws_after_the_bad_one_around_its_window(setup: Setup, data: st.DataObject) -> None:
    position = data.draw(st.integers(0, 4 * setup.num_samples))
    assert samples(setup.plan().substitutes(position)) == setup.reference().substitutes(position)


def test_a_window_of_one_sample_has_no_substitutes() -> None:
    assert samples(ONE_SAMPLE.plan().substitutes(2)) == []


@examples(60)
@given(setup=corpora, data=st.data())
def test_live_shards_and_window_end_are_those_of_the_window(setup: Setup, data: st.DataObject) -> None:
    position = data.draw(st.integers(0, 4 * setup.num_samples))
    time, lane = divmod(position, setup.lanes)
    plan, reference = setup.plan(), setup.reference()
    window, offset = reference.window_of(position)
    axis = reference.axis(window[0][0])
    in_axis_order = sorted(window, key=axis.index)
    assert plan.live_shards(lane, time).tolist() == list(dict.fromkeys(shard for _, shard, _ in in_axis_order))
    assert plan.window_end(lane, time) == time - offset + len(window)


@examples(40)
@given(setup=corpora, other=seeds)
def test_a_plan_is_a_function_of_its_arguments_alone(setup: Setup, other: int) -> None:
    positions = range(2 * setup.num_samples)
    used = setup.plan()
    for position in reversed(positions):
        used.locate(np.asarray([position]))
    assert located(used, positions) == located(setup.plan(), positions)


def test_another_seed_is_another_order() -> None:
    orders = {tuple(located(Setup(EVEN.counts, seed, 8, 8).plan(), range(EVEN.num_samples))) for seed in range(20)}
    assert len(orders) == 20


def test_another_epoch_is_another_order() -> None:
    plan, size = EVEN.plan(), EVEN.num_samples
    orders = {tuple(row[1:] for row in located(plan, range(e * size, (e + 1) * size))) for e in range(20)}
    assert len(orders) == 20


@pytest.mark.parametrize(
    ("counts", "lanes", "window", "message"),
    [
        ([], 1, 1, "no samples"),
        ([0, 0], 1, 1, "2 shards, all empty"),
        ([3, -2], 1, 1, "shard 1 has a negative number of samples: -2"),
        ([3], 0, 1, r"lanes \(0\)"),
        ([3], 1, 0, r"window \(0\)"),
    ],
)
def test_impossible_plans_are_refused_with_the_value(counts: list[int], lanes: int, window: int, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        IndexedPlan(np.asarray(counts, np.int64), seed=0, lanes=lanes, window=window)
