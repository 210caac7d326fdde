"""Pieces cover every row once and in order, and a piece knows where its rows are."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iostack.prepare.pieces import Pieces

COUNTS = st.lists(st.integers(0, 9), max_size=12)


@given(COUNTS, st.integers(1, 20))
def test_the_rows_of_all_pieces_are_all_rows_in_order(counts: list[int], rows: int) -> None:
    pieces = Pieces(counts, rows)
    found = [
        (run.shard, row)
        for number in range(len(pieces))
        for run in pieces[number].runs
        for row in range(run.start, run.stop)
    ]
    assert found == [(shard, row) for shard, count in enumerate(counts) for row in range(count)]


@given(COUNTS, st.integers(1, 20))
def test_every_piece_but_the_last_has_its_rows_and_none_is_empty(counts: list[int], rows: int) -> None:
    pieces = Pieces(counts, rows)
    all_pieces = [pieces[number] for number in range(len(pieces))]
    assert all(piece.num_rows == rows for piece in all_pieces[:-1])
    assert all(0 < piece.num_rows <= rows for piece in all_pieces)
    assert all(piece.first_row == piece.number * rows for piece in all_pieces)
    assert all(run.start < run.stop for piece in all_pieces for run in piece.runs)


def test_a_piece_beyond_the_last_is_no_piece() -> None:
    with pytest.raises(IndexError, match="piece 2 of 2"):
        Pieces([3, 3], 3)[2]
