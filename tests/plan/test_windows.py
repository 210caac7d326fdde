"""Windows: staggered from lane to lane, shuffled inside and never across, each by a key of its own."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iostack.plan.indexed import IndexedPlan
from iostack.plan.units import choose_unit_lanes
from iostack.plan.windows import LaneGeometry, Window, choose_lanes, choose_window, segment_stride

from .reference import Sample
from .strategies import Setup, corpora, examples, located


def windows_of(geometry: LaneGeometry, lane: int, num_times: int) -> list[Window]:
    """Return the windows that a lane meets, each once, in order."""
    return list(dict.fromkeys(geometry.window_at(lane, time) for time in range(num_times)))


def draws_of(plan: IndexedPlan, lane: int, window: Window) -> list[Sample]:
    """Return the samples of a window in the order in which its lane meets them."""
    times = range(window.first_time, window.first_time + window.length)
    return located(plan, [time * plan.lanes + lane for time in times])


@examples(60)
@given(num_samples=st.integers(1, 200), lanes=st.integers(1, 30))
def test_segments_are_the_axis_cut_into_near_equal_parts(num_samples: int, lanes: int) -> None:
    bounds = [LaneGeometry(num_samples, lanes, 4).segment_bounds(segment) for segment in range(lanes)]
    on_axis = sorted(bounds)
    assert [start for start, _ in on_axis] == [0, *(stop for _, stop in on_axis[:-1])]
    assert on_axis[-1][1] == num_samples
    sizes = [stop - start for start, stop in bounds]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] - sizes[-1] <= 1


@pytest.mark.parametrize("lanes", [8, 16, 48, 64, 100])
def test_any_number_of_successive_segments_are_spread_over_the_axis(lanes: int) -> None:
    geometry = LaneGeometry(num_samples=1000 * lanes, lanes=lanes, window=100)
    places = [geometry.segment_bounds(segment)[0] // 1000 for segment in range(lanes)]
    for count in range(2, lanes + 1):
        for first in range(lanes):
            chosen = sorted(places[(first + number) % lanes] for number in range(count))
            gaps = [after - before for before, after in zip(chosen, [*chosen[1:], chosen[0] + lanes])]
            assert max(gaps) <= 3 * -(-lanes // count)
            assert min(gaps) >= lanes // (3 * count) or lanes not in (8, 16, 64)


@pytest.mark.parametrize(("lanes", "stride"), [(1, 1), (2, 1), (3, 1), (4, 1), (8, 3), (12, 7), (64, 39), (1000, 617)])
def test_the_stride_of_segments_never_changes(lanes: int, stride: int) -> None:
    assert segment_stride(lanes) == stride


@examples(60)
@given(setup=corpora)
def test_windows_tile_each_lane_in_time_and_each_epoch_on_the_axis(setup: Setup) -> None:
    geometry = setup.plan().geometry
    covered: dict[int, list[int]] = {}
    for lane in range(setup.lanes):
        num_times = -(-(2 * setup.num_samples - lane) // setup.lanes)
        windows = windows_of(geometry, lane, num_times)
        assert all(1 <= window.length <= setup.window for window in windows)
        assert [window.first_time for window in windows] == [
            *[0][: len(windows)],
            *(window.first_time + window.length for window in windows[:-1]),
        ]
        for window in windows:
            covered.setdefault(window.epoch, []).extend(range(window.axis_start, window.axis_start + window.length))
            low, high = geometry.segment_bounds(window.segment)
            assert low <= window.axis_start < window.axis_start + window.length <= high
    assert sorted(covered[0]) == sorted(covered[1]) == list(range(setup.num_samples))


@examples(60)
@given(setup=corpora)
def test_no_two_windows_share_an_identity(setup: Setup) -> None:
    geometry = setup.plan().geometry
    windows = [
        window
        for lane in range(setup.lanes)
        for window in windows_of(geometry, lane, -(-(3 * setup.num_samples - lane) // setup.lanes))
    ]
    assert len({(window.epoch, window.segment, window.index) for window in windows}) == len(windows)


def test_the_borders_of_lanes_are_spread_evenly_over_a_window() -> None:
    geometry = LaneGeometry(num_samples=8000, lanes=8, window=160)
    starts = [
        [w.axis_start - geometry.segment_bounds(w.segment)[0] for w in windows_of(geometry, lane, 1000)]
        for lane in range(8)
    ]
    assert [segment[:3] for segment in starts] == [[0, shift, shift + 160] for shift in range(10, 160, 20)]
    borders = [border for segment in starts for border in segment[1:]]
    assert len(set(borders)) == len(borders)


@examples(40)
@given(setup=corpora)
def test_a_draw_stays_in_its_window(setup: Setup) -> None:
    plan, reference = setup.plan(), setup.reference()
    for lane in range(setup.lanes):
        for window in windows_of(plan.geometry, lane, -(-(2 * setup.num_samples - lane) // setup.lanes)):
            drawn = draws_of(plan, lane, window)
            axis = reference.axis(window.epoch)
            assert sorted(drawn, key=axis.index) == axis[window.axis_start : window.axis_start + window.length]
            assert (drawn, 0) == reference.window_of(window.first_time * setup.lanes + lane)


def test_windows_are_shuffled_and_each_differently() -> None:
    plan = Setup(counts=(1024,), seed=1, lanes=4, window=32).plan()
    orders = [
        tuple(np.argsort([row for _, _, row in draws_of(plan, lane, window)]).tolist())
        for lane in range(4)
        for window in windows_of(plan.geometry, lane, 3 * 256)
        if window.length == 32
    ]
    assert len(orders) == 3 * 4 * 7
    assert len(set(orders)) == len(orders)
    assert tuple(range(32)) not in orders


def test_a_lane_reads_another_segment_after_an_epoch_that_the_lanes_do_not_divide() -> None:
    geometry = LaneGeometry(num_samples=10, lanes=4, window=3)
    segments = [[w.segment for w in windows_of(geometry, lane, 10)] for lane in range(4)]
    assert [list(dict.fromkeys(lane)) for lane in segments] == [[0, 2], [1, 3], [2, 0], [3, 1]]


@pytest.mark.parametrize(
    ("window_bytes", "mean", "window"),
    [(1 << 28, 4096.0, 65536), (1 << 28, 100.0, 131072), (10, 4096.0, 1), (10, 0.0, 10), (10, 3.0, 3), (0, 1, 1)],
)
def test_a_window_holds_about_its_bytes_but_neither_nothing_nor_too_many(
    window_bytes: int, mean: float, window: int
) -> None:
    assert choose_window(window_bytes, mean) == window


@examples(300)
@given(ranks=st.integers(1, 40) | st.integers(1, 5000), num_samples=st.integers(0, 5000) | st.integers(0, 10**7))
def test_lanes_are_a_multiple_of_the_ranks_that_is_enough(ranks: int, num_samples: int) -> None:
    lanes = choose_lanes(ranks, num_samples)
    assert lanes >= 1
    assert lanes % ranks == 0
    assert lanes >= min(64, num_samples / 64)
    assert lanes == ranks or lanes - ranks < min(64, max(8, 2 * num_samples / 64))


@pytest.mark.parametrize("choose", [choose_lanes, choose_unit_lanes])
@pytest.mark.parametrize("number", [1, 5, 40, 200, 1000, 10**6])
def test_powers_of_two_of_ranks_choose_the_same_lanes(choose: Callable[[int, int], int], number: int) -> None:
    lanes = choose(1, number)
    assert lanes >= 8
    assert all(choose(ranks, number) == lanes for ranks in (2, 4, 8, 16, 32, 64) if ranks <= lanes)


def test_one_window_follows_the_last_without_a_gap() -> None:
    geometry = LaneGeometry(num_samples=1000, lanes=3, window=17)
    for first, second in pairwise(windows_of(geometry, 1, 900)):
        assert second.first_time == first.first_time + first.length
