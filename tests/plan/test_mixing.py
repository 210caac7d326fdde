"""Mixing: fair at every prefix, equal for every lane, and no sample of a source lost or repeated."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from math import gcd, inf, nan

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from iostack.errors import PlanError
from iostack.plan.mixing import Mix, integer_weights, tijdeman_cycle

from . import reference
from .strategies import Setup, corpora, examples, located, mixes


@examples(80)
@given(weights=st.lists(st.integers(1, 40), min_size=1, max_size=7))
@example(weights=[14, 20, 25, 25, 1])
@example(weights=[706, 202, 101])
@example(weights=[1] * 20)
def test_the_cycle_is_tijdemans_to_the_last_tie(weights: list[int]) -> None:
    assert tijdeman_cycle(weights).tolist() == reference.cycle(weights)


@examples(80)
@given(weights=st.lists(st.integers(1, 40), min_size=1, max_size=7), rounds=st.integers(1, 3))
def test_every_prefix_is_within_one_of_its_weight(weights: list[int], rounds: int) -> None:
    total = sum(weights)
    bound = 1 - Fraction(1, 2 * len(weights) - 2) if len(weights) > 1 else 0
    given_by_source = [0] * len(weights)
    for number, source in enumerate(tijdeman_cycle(weights).tolist() * rounds, start=1):
        given_by_source[source] += 1
        for weight, count in zip(weights, given_by_source):
            assert abs(count - Fraction(weight * number, total)) <= bound


def test_a_long_cycle_of_very_uneven_weights_is_fair_too() -> None:
    weights = integer_weights([1e-3, 1e-2, 0.1, 3.0, 7.0])
    cycle = tijdeman_cycle(weights)
    given_by_source = np.cumsum(cycle[:, None] == np.arange(5), axis=0)
    wanted = np.arange(1, len(cycle) + 1)[:, None] * np.asarray(weights) / sum(weights)
    assert np.abs(given_by_source - wanted).max() <= 1
    assert given_by_source[-1].tolist() == list(weights)


@examples(80)
@given(mixed=mixes(), data=st.data())
def test_sources_and_draws_equal_the_reference(mixed: tuple[list[int], int], data: st.DataObject) -> None:
    weights, lanes = mixed
    mix, expected = Mix(weights, lanes), reference.Mixed(weights, lanes)
    lane = data.draw(st.integers(0, lanes - 1))
    times = range(3 * sum(weights) + 2)
    positions = np.asarray(times) * lanes + lane
    assert mix.sources(positions).tolist() == [expected.source_of(time * lanes + lane) for time in times]
    for source in range(len(weights)):
        before = mix.draws_before(positions, source).tolist()
        assert before == [expected.draws_before(lane, time, source) for time in times]


@examples(60)
@given(mixed=mixes())
def test_every_lane_advances_every_source_by_its_weight_in_each_cycle(mixed: tuple[list[int], int]) -> None:
    weights, lanes = mixed
    mix = Mix(weights, lanes)
    cycles = np.arange(4) * sum(weights)
    for lane in range(lanes):
        for source, weight in enumerate(weights):
            for shift in range(sum(weights)):
                advance = np.diff(mix.draws_before((cycles + shift) * lanes + lane, source))
                assert set(advance.tolist()) == {weight}


@examples(60)
@given(mixed=mixes())
def test_each_source_meets_its_own_positions_once_and_in_order_per_lane(mixed: tuple[list[int], int]) -> None:
    weights, lanes = mixed
    mix, rounds = Mix(weights, lanes), 3
    steps = np.arange(rounds * sum(weights))
    met: dict[int, list[int]] = {source: [] for source in range(len(weights))}
    for lane in range(lanes):
        positions = steps * lanes + lane
        sources = mix.sources(positions)
        for source, weight in enumerate(weights):
            draws = mix.draws_before(positions[sources == source], source)
            assert draws.tolist() == list(range(rounds * weight))
            met[source] += (draws * lanes + lane).tolist()
    for source, weight in enumerate(weights):
        assert sorted(met[source]) == list(range(rounds * weight * lanes))


@examples(30)
@given(mixed=mixes(), first=corpora, second=corpora)
def test_mixed_sources_are_each_read_epoch_after_epoch(
    mixed: tuple[list[int], int], first: Setup, second: Setup
) -> None:
    weights, lanes = mixed
    setups = [
        Setup(setup.counts, setup.seed + source, lanes, setup.window)
        for source, (_, setup) in enumerate(zip(weights, [first, second] * 3))
    ]
    mix, expected = Mix(weights, lanes), reference.Mixed(weights, lanes)
    references = [setup.reference() for setup in setups]
    plans = [setup.plan() for setup in setups]
    num_positions = lanes * sum(weights) * 2
    counted: Counter[tuple[int, tuple[int, int, int]]] = Counter()
    for lane in range(lanes):
        positions = np.arange(lane, num_positions, lanes)
        sources = mix.sources(positions)
        for source in range(len(weights)):
            chosen = positions[sources == source]
            draws = mix.draws_before(chosen, source)
            found = located(plans[source], (draws * lanes + lane).tolist())
            own = [expected.at(position) for position in chosen.tolist()]
            assert found == [references[which].at(position) for which, position in own]
            counted.update((source, sample) for sample in found)
    assert set(counted.values()) == {1}
    assert len(counted) == num_positions


@examples(60)
@given(mixed=mixes(), data=st.data())
def test_positions_of_many_lanes_are_counted_in_one_call(mixed: tuple[list[int], int], data: st.DataObject) -> None:
    weights, lanes = mixed
    mix, expected = Mix(weights, lanes), reference.Mixed(weights, lanes)
    positions = data.draw(st.lists(st.integers(0, 3 * lanes * sum(weights)), max_size=20))
    found = np.asarray(positions, np.int64)
    assert mix.sources(found).tolist() == [expected.source_of(position) for position in positions]
    for source in range(len(weights)):
        assert mix.draws_before(found, source).tolist() == [
            expected.draws_before(position % lanes, position // lanes, source) for position in positions
        ]


@examples(80)
@given(mixed=mixes())
@example(mixed=([1, 1], 64))
@example(mixed=([3, 1], 64))
@example(mixed=([7, 3], 64))
def test_the_whole_stream_keeps_to_the_weights(mixed: tuple[list[int], int]) -> None:
    weights, lanes = mixed
    total = sum(weights)
    sources = Mix(weights, lanes).sources(np.arange(3 * total * lanes))
    numbers = np.arange(1, len(sources) + 1)
    bound = 1 if len(weights) <= 2 or gcd(total, lanes) == 1 else 2
    for source, weight in enumerate(weights):
        assert np.abs(np.cumsum(sources == source) * total - numbers * weight).max() <= bound * total


@examples(300)
@given(weights=st.lists(st.one_of(st.floats(0.1, 100.0), st.integers(1, 50)), min_size=1, max_size=8))
def test_integer_weights_are_close(weights: list[float]) -> None:
    whole = integer_weights(weights)
    total = sum(whole)
    assert total <= 10_000
    assert min(whole) >= 1
    for integer, weight in zip(whole, weights, strict=True):
        assert abs(integer - weight / sum(weights) * total) <= 1


@examples(200)
@given(weights=st.lists(st.integers(1, 50), min_size=2, max_size=8), factor=st.integers(1, 9))
def test_whole_and_decimal_weights_are_exact(weights: list[int], factor: int) -> None:
    least = [weight // gcd(*weights) for weight in weights]
    assert list(integer_weights([weight * factor for weight in weights])) == least
    assert list(integer_weights([weight / 100 for weight in weights])) == least


def test_a_share_that_no_cycle_can_hold_is_refused() -> None:
    with pytest.raises(PlanError, match=r"source 1 has weight 1e-06, less than 1/20000 of the mix"):
        integer_weights([1, 1e-6])


def test_one_source_needs_no_cycle() -> None:
    assert integer_weights([0.3]) == (1,)
    assert Mix((1,), 64).draws_before(np.arange(4) * 64 + 5, 0).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("bad", [0, 0.0, -1, -0.5, nan, inf, -inf])
def test_weights_that_are_not_positive_numbers_are_refused_by_index(bad: float) -> None:
    with pytest.raises(PlanError, match="source 1 has weight"):
        integer_weights([1, bad, 2])
    with pytest.raises(PlanError, match="source 0 has weight"):
        integer_weights([bad])
