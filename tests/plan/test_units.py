"""Units: they partition the rows, and are dealt to lanes as samples are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iostack.errors import PlanError
from iostack.plan.units import UnitPlan, choose_unit_lanes, choose_unit_rows

from . import reference
from .strategies import Setup, corpora, examples

unit_sizes = st.integers(1, 50)


def unit_plan(setup: Setup, unit_rows: int, *, known: bool = True) -> UnitPlan:
    counts = np.asarray(setup.counts if known else [-1] * len(setup.counts), np.int64)
    return UnitPlan(counts, unit_rows, seed=setup.seed, lanes=setup.lanes, window=setup.window)


@examples(60)
@given(setup=corpora, unit_rows=unit_sizes)
def test_the_units_of_an_epoch_partition_the_rows(setup: Setup, unit_rows: int) -> None:
    plan = unit_plan(setup, unit_rows)
    for epoch in range(3):
        units = [
            plan.unit(lane, draw)
            for lane in range(setup.lanes)
            for draw in range(plan.draws_in(lane, epoch), plan.draws_in(lane, epoch + 1))
        ]
        assert {unit.epoch for unit in units} == {epoch}
        assert sorted(unit.number for unit in units) == list(range(plan.num_units))
        assert all(1 <= unit.num_rows <= unit_rows for unit in units)
        rows = sorted(
            (unit.shard, row) for unit in units for row in range(unit.first_row, unit.first_row + unit.num_rows)
        )
        assert rows == [(shard, row) for shard, count in enumerate(setup.counts) for row in range(count)]


@examples(60)
@given(setup=corpora, unit_rows=unit_sizes, known=st.booleans(), data=st.data())
def test_any_draw_of_any_lane_equals_the_reference(
    setup: Setup, unit_rows: int, known: bool, data: st.DataObject
) -> None:
    plan = unit_plan(setup, unit_rows, known=known)
    by_shard = reference.units(setup.counts if known else [-1] * len(setup.counts), unit_rows)
    numbers = [len(units) for units in by_shard]
    source = reference.Source(numbers, seed=setup.seed, lanes=setup.lanes, window=setup.window)
    assert plan.num_units == sum(numbers)
    for _ in range(8):
        lane, draw = data.draw(st.integers(0, setup.lanes - 1)), data.draw(st.integers(0, 40))
        epoch, shard, index = source.at(draw * setup.lanes + lane)
        rows, unit = by_shard[shard][index], plan.unit(lane, draw)
        assert (unit.epoch, unit.shard, unit.number) == (epoch, shard, sum(numbers[:shard]) + index)
        assert (unit.first_row, unit.num_rows) == ((0, -1) if rows is None else (rows.start, len(rows)))


@examples(100)
@given(setup=corpora, unit_rows=unit_sizes, epochs=st.integers(0, 4))
def test_draws_in_counts_the_units_dealt_to_a_lane(setup: Setup, unit_rows: int, epochs: int) -> None:
    plan = unit_plan(setup, unit_rows)
    dealt = [plan.draws_in(lane, epochs) for lane in range(setup.lanes)]
    assert dealt == [len(range(lane, epochs * plan.num_units, setup.lanes)) for lane in range(setup.lanes)]
    assert sum(dealt) == epochs * plan.num_units


def test_a_corpus_without_rows_is_refused() -> None:
    with pytest.raises(PlanError, match="no samples"):
        UnitPlan(np.zeros(3, np.int64), 4, seed=0, lanes=1, window=1)


@examples(200)
@given(num_rows=st.integers(1, 10**9), row_bytes=st.integers(1, 10**6), seq_len=st.integers(1, 1 << 17))
def test_units_are_long_enough_for_many_sequences_and_no_longer_than_needed(
    num_rows: int, row_bytes: int, seq_len: int
) -> None:
    total_bytes = num_rows * row_bytes
    unit_rows = choose_unit_rows(num_rows, total_bytes, seq_len)
    assert unit_rows >= 1
    least = 32 * 4 * seq_len
    assert (unit_rows + 0.5) * row_bytes >= min(least, total_bytes / 256)
    assert unit_rows == 1 or (unit_rows - 0.5) * row_bytes <= max(4 << 20, least)
    if unit_rows > 1 and (unit_rows - 0.5) * row_bytes > least:
        assert -(-num_rows // unit_rows) >= 256 * 2 // 3


@pytest.mark.parametrize("total_bytes", [0, 1])
def test_units_of_a_corpus_of_nothing_hold_at_least_a_row(total_bytes: int) -> None:
    assert choose_unit_rows(0, total_bytes, 128) == 1


@examples(300)
@given(ranks=st.integers(1, 40) | st.integers(1, 3000), num_units=st.integers(0, 300) | st.integers(0, 10**6))
def test_unit_lanes_are_a_multiple_of_the_ranks_that_is_enough(ranks: int, num_units: int) -> None:
    lanes = choose_unit_lanes(ranks, num_units)
    assert lanes >= 1
    assert lanes % ranks == 0
    assert lanes >= min(64, num_units // 4)
    assert lanes == ranks or lanes - ranks < min(64, max(8, 2 * (num_units // 4)))
