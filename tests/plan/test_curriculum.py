"""Mixes whose weights change: equal to a lane-by-lane walk, exact to the last draw of every source."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from iostack.plan.curriculum import Curriculum, Phase
from iostack.plan.mixing import Mix
from iostack.plan.topology import Topology, last_in_lane

from . import reference
from .strategies import examples


@st.composite
def curricula(draw: st.DrawFn, *, finite: bool = False) -> tuple[list[Phase], int, list[int | None]]:
    """Draw (phases, lanes, limits) of a few sources."""
    sources, lanes = draw(st.integers(1, 4)), draw(st.integers(1, 9))
    weights = st.lists(st.integers(0, 5), min_size=sources, max_size=sources).filter(any).map(tuple)
    starts = sorted(draw(st.sets(st.integers(1, 150), max_size=3)))
    phases = [Phase(start, draw(weights)) for start in (0, *starts)]
    limit = st.integers(1, 90)
    limits = [draw(limit if finite else st.one_of(st.none(), limit)) for _ in range(sources)]
    return phases, lanes, limits


def _reference(phases: list[Phase], lanes: int, limits: list[int | None]) -> reference.Curriculum:
    return reference.Curriculum([(phase.start, phase.weights) for phase in phases], lanes, limits)


@examples(250)
@given(drawn=curricula())
def test_every_lane_walks_as_the_plain_reference_does(drawn: tuple[list[Phase], int, list[int | None]]) -> None:
    phases, lanes, limits = drawn
    expected = _reference(*drawn)
    mix = Curriculum(phases, lanes, limits)
    ends = []
    for lane in range(lanes):
        walk = expected.lane(lane, 60)
        positions = np.arange(60) * lanes + lane
        sources = mix.sources(positions)
        found = [
            (source, int(mix.draws_before(positions[[time]], source)[0]) * lanes + lane)
            for time, source in enumerate(sources.tolist())
        ]
        assert found[: len(walk)] == walk
        assert mix.is_within(positions).tolist() == [time < len(walk) for time in range(60)]
        if len(walk) == 60:
            assert mix.end is None or mix.end > int(positions[-1])
        elif walk:
            ends.append((len(walk) - 1) * lanes + lane + 1)
    if mix.end is not None and mix.end < 59 * lanes:
        assert mix.end == max(ends)


@examples(100)
@given(drawn=curricula(finite=True))
def test_where_the_last_phase_draws_all_sources_each_gives_exactly_its_limit(
    drawn: tuple[list[Phase], int, list[int | None]],
) -> None:
    phases, lanes, limits = drawn
    phases = [*phases, Phase(200, (1,) * len(limits))]
    mix = Curriculum(phases, lanes, limits)
    assert mix.end is not None
    positions = np.arange(mix.end)
    positions = positions[mix.is_within(positions)]
    sources = mix.sources(positions)
    assert Counter(sources.tolist()) == Counter(dict(enumerate(limits)))
    for source, limit in enumerate(limits):
        own = positions[sources == source]
        drawn_there = mix.draws_before(own, source) * lanes + own % lanes
        assert sorted(drawn_there.tolist()) == list(range(limit or 0))


@examples(60)
@given(weights=st.lists(st.integers(1, 9), min_size=1, max_size=4), lanes=st.integers(1, 12))
def test_one_phase_without_limits_is_the_plain_mix(weights: list[int], lanes: int) -> None:
    positions = np.arange(3 * sum(weights) * lanes)
    plain = Mix([weight // np.gcd.reduce(weights) for weight in weights], lanes)
    mix = Curriculum([Phase(0, tuple(weights))], lanes, [None] * len(weights))
    assert mix.sources(positions).tolist() == plain.sources(positions).tolist()
    for source in range(len(weights)):
        assert mix.draws_before(positions, source).tolist() == plain.draws_before(positions, source).tolist()
    assert mix.end is None


def test_a_phase_begins_at_the_first_multiple_of_the_lanes_and_keeps_its_shares() -> None:
    mix = Curriculum([Phase(0, (1, 0)), Phase(1001, (1, 3))], 8, [None, None])
    sources = mix.sources(np.arange(1008 + 4000))
    assert not sources[:1008].any()
    assert Counter(sources[1008:].tolist()) == {0: 1000, 1: 3000}


def test_a_billion_samples_of_a_source_are_laid_out_without_a_walk() -> None:
    mix = Curriculum([Phase(0, (7, 3))], 64, [10**9 + 7, 3 * 10**10 + 1])
    assert mix.end is not None
    assert 31 * 10**9 + 8 <= mix.end <= 31 * 10**9 + 8 + 2 * 64
    tail = np.arange(mix.end - 1000, mix.end)
    assert set(mix.sources(tail[mix.is_within(tail)]).tolist()) == {1}


@examples(60)
@given(lanes=st.integers(1, 9), ranks=st.integers(1, 6), position=st.integers(0, 200), data=st.data())
def test_the_last_turn_of_a_rank_in_a_lane_is_found(lanes: int, ranks: int, position: int, data: st.DataObject) -> None:
    rank = data.draw(st.integers(0, ranks - 1))
    lane = data.draw(
        st.sampled_from([lane for lane in range(lanes) if lane % np.gcd(lanes, ranks) == rank % np.gcd(lanes, ranks)])
    )
    own = [each for each in range(position) if each % lanes == lane and each % ranks == rank]
    found = last_in_lane(Topology(ranks, rank, ranks), position, lane, lanes)
    assert found == own[-1] if own else found < 0
