"""Ranks: every number of them gives the same samples per step, and a run goes on from anywhere to anywhere."""

from __future__ import annotations

from itertools import chain

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iostack.errors import PlanError
from iostack.plan.indexed import IndexedPlan
from iostack.plan.topology import Topology, next_in_lane, own_lanes

from . import reference
from .reference import Sample
from .strategies import Setup, batches, corpora, examples, located, samples


def read(plan: IndexedPlan, topology: Topology, start: int, num_batches: int) -> list[list[Sample]]:
    """Return a rank's samples of each step, looked up in one block as a loader does."""
    found = samples(plan.locate(topology.positions(start, num_batches)))
    return [found[step * topology.rows : (step + 1) * topology.rows] for step in range(num_batches)]


def step_sets(setup: Setup, start: int, num_batches: int, batch: tuple[int, int]) -> list[list[Sample]]:
    """Return the samples of each step over all ranks, sorted; every rank has a fresh plan."""
    ranks, batch_size = batch
    parts = [read(setup.plan(), Topology(batch_size, rank, ranks), start, num_batches) for rank in range(ranks)]
    return [sorted(chain.from_iterable(part[step] for part in parts)) for step in range(num_batches)]


@examples(100)
@given(batch=batches(), start=st.integers(0, 100), num_batches=st.integers(0, 6))
def test_positions_are_those_of_the_reference(batch: tuple[int, int], start: int, num_batches: int) -> None:
    ranks, batch_size = batch
    for rank in range(ranks):
        topology = Topology(batch_size, rank, ranks)
        positions = topology.positions(start, num_batches)
        assert positions.dtype == np.int64
        assert positions.tolist() == reference.rank_positions(start, num_batches, batch_size, rank, ranks)
        assert len(positions) == num_batches * topology.rows


@examples(100)
@given(batch=batches(), start=st.integers(0, 500), lanes=st.integers(1, 24))
def test_the_lanes_of_a_rank_are_those_of_its_positions(batch: tuple[int, int], start: int, lanes: int) -> None:
    ranks, batch_size = batch
    read_by: list[int] = []
    for rank in range(ranks):
        topology = Topology(batch_size, rank, ranks)
        positions = topology.positions(start, lanes)
        assert own_lanes(topology, lanes) == sorted(set((positions % lanes).tolist()))
        read_by += own_lanes(topology, lanes)
    assert set(read_by) == set(range(lanes))
    if lanes % ranks == 0:
        assert len(read_by) == lanes


@examples(60)
@given(setup=corpora, lane_multiple=st.booleans(), batch=batches(), start=st.integers(0, 200))
def test_a_step_is_the_same_set_for_every_number_of_ranks(
    setup: Setup, lane_multiple: bool, batch: tuple[int, int], start: int
) -> None:
    _, batch_size = batch
    if lane_multiple:
        setup = Setup(setup.counts, setup.seed, batch_size, setup.window)
    one = step_sets(setup, start, 3, (1, batch_size))
    source = setup.reference()
    assert one == [
        sorted(source.at(position) for position in range(start + step * batch_size, start + (step + 1) * batch_size))
        for step in range(3)
    ]
    for ranks in range(2, batch_size + 1):
        if batch_size % ranks == 0:
            assert step_sets(setup, start, 3, (ranks, batch_size)) == one


@examples(60)
@given(setup=corpora, ranks=st.integers(1, 6), times=st.integers(1, 4))
def test_ranks_that_divide_the_lanes_read_disjoint_segments_of_an_epoch(setup: Setup, ranks: int, times: int) -> None:
    setup = Setup(setup.counts, setup.seed, ranks * times, setup.window)
    source, geometry = setup.reference(), setup.plan().geometry
    for epoch in range(3):
        first, last = epoch * setup.num_samples, (epoch + 1) * setup.num_samples
        read_by: dict[int, set[int]] = {}
        for rank in range(ranks):
            for position in range(first, last):
                if position % ranks == rank:
                    time, lane = divmod(position, setup.lanes)
                    window = geometry.window_at(lane, time)
                    assert window.epoch == epoch
                    assert source.at(position) in source.segment(epoch, window.segment)
                    read_by.setdefault(window.segment, set()).add(rank)
        assert all(len(readers) == 1 for readers in read_by.values())


@examples(60)
@given(batch=batches(), times=st.integers(1, 6), start=st.integers(0, 500))
def test_a_lane_stays_with_its_rank_where_ranks_divide_the_lanes(
    batch: tuple[int, int], times: int, start: int
) -> None:
    ranks, batch_size = batch
    lanes = ranks * times
    for rank in range(ranks):
        positions = Topology(batch_size, rank, ranks).positions(start, 8)
        assert {int(lane) % ranks for lane in positions % lanes} == {rank}


@examples(60)
@given(setup=corpora, legs=st.lists(st.tuples(batches(), st.integers(0, 4)), min_size=1, max_size=4))
def test_stopping_and_going_on_with_other_ranks_and_batch_sizes_equals_never_stopping(
    setup: Setup, legs: list[tuple[tuple[int, int], int]]
) -> None:
    position, seen = 0, []
    for batch, num_batches in legs:
        steps = step_sets(setup, position, num_batches, batch)
        for step in steps:
            expected = located(setup.plan(), range(position, position + batch[1]))
            assert step == sorted(expected)
            position += batch[1]
        seen.extend(chain.from_iterable(steps))
    assert sorted(seen) == sorted(setup.reference().at(position) for position in range(position))


@examples(40)
@given(setup=corpora, batch=batches())
def test_a_run_stopped_after_every_step_sees_what_a_run_that_never_stopped_sees(
    setup: Setup, batch: tuple[int, int]
) -> None:
    ranks, batch_size = batch
    num_batches = 2 * setup.num_samples // batch_size + 1
    for rank in range(ranks):
        topology = Topology(batch_size, rank, ranks)
        through = read(setup.plan(), topology, 0, num_batches)
        stopping = [read(setup.plan(), topology, step * batch_size, 1)[0] for step in range(num_batches)]
        assert stopping == through


@examples(60)
@given(setup=corpora, batch=batches())
def test_a_finite_pass_gives_every_sample_once_and_every_rank_as_many_steps(
    setup: Setup, batch: tuple[int, int]
) -> None:
    ranks, batch_size = batch
    expected = reference.finite_steps(setup.num_samples, batch_size)
    assert len(expected) == -(-setup.num_samples // batch_size)
    valid_samples: list[Sample] = []
    for rank in range(ranks):
        positions = Topology(batch_size, rank, ranks).positions(0, len(expected))
        mine = [entry for step in expected for entry in step if entry[0] % ranks == rank]
        assert positions.tolist() == [position for position, _ in mine]
        valid_samples += located(setup.plan(), [position for position, valid in mine if valid])
    assert sorted(valid_samples) == sorted(setup.reference().axis(0))


@examples(100)
@given(position=st.integers(0, 10_000), lanes=st.integers(1, 70))
def test_the_next_position_of_a_lane_is_the_first_from_here_on(position: int, lanes: int) -> None:
    following = {number % lanes: number for number in reversed(range(position, position + lanes))}
    assert {lane: next_in_lane(position, lane, lanes) for lane in range(lanes)} == following


@pytest.mark.parametrize(
    ("batch_size", "ranks", "sizes"),
    [(510, 8, "504 or 512"), (7, 2, "6 or 8"), (3, 8, "8"), (9, 8, "8 or 16")],
)
def test_ranks_that_do_not_divide_the_batch_are_refused_with_the_nearest_sizes(
    batch_size: int, ranks: int, sizes: str
) -> None:
    with pytest.raises(PlanError, match=f"batch_size {batch_size} is not divisible by {ranks} data ranks") as caught:
        Topology(batch_size, 0, ranks)
    assert caught.value.hint == f"use a batch size of {sizes}"


@pytest.mark.parametrize(("batch_size", "rank", "ranks"), [(0, 0, 1), (4, 2, 2), (4, -1, 2), (4, 0, 0), (-4, 0, 2)])
def test_impossible_topologies_are_refused(batch_size: int, rank: int, ranks: int) -> None:
    with pytest.raises(PlanError, match="impossible"):
        Topology(batch_size, rank, ranks)
