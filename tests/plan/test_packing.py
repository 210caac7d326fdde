"""Cutting and fitting documents, against plain lists, for any lengths."""

from __future__ import annotations

from itertools import chain

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from loader import packed

from iostack.plan.packing import Pieces, best_fit, cut, fit

LENGTHS = st.lists(st.integers(0, 40), max_size=40)


def _rows(pieces: Pieces) -> list[list[tuple[int, int]]]:
    assert pieces.lengths.all()
    runs = [
        [(document, index) for index in range(offset, offset + length)]
        for document, offset, length in zip(pieces.documents.tolist(), pieces.offsets.tolist(), pieces.lengths.tolist())
    ]
    stops = np.cumsum(pieces.counts).tolist()
    return [list(chain.from_iterable(runs[stop - count : stop])) for stop, count in zip(stops, pieces.counts.tolist())]


@given(lengths=st.lists(st.integers(1, 20), max_size=60), slack=st.integers(0, 20))
def test_best_fit_is_that_of_looking_at_every_bin(lengths: list[int], slack: int) -> None:
    capacity = max(lengths, default=1) + slack
    assert best_fit(np.asarray(lengths, np.int64), capacity).tolist() == packed.best_fit(lengths, capacity)


@given(lengths=LENGTHS, seq_len=st.integers(1, 30))
def test_fitted_rows_are_those_of_plain_lists(lengths: list[int], seq_len: int) -> None:
    documents = [packed.document(number, length) for number, length in enumerate(lengths)]
    expected = [[place for place in row if place] for row in packed.fitted_rows(documents, seq_len)]
    assert _rows(fit(np.asarray(lengths, np.int64), seq_len)) == expected


@given(lengths=LENGTHS, seq_len=st.integers(1, 30), first=st.integers(0, 30))
def test_cut_rows_are_slices_of_the_stream(lengths: list[int], seq_len: int, first: int) -> None:
    documents = [packed.document(number, length) for number, length in enumerate(lengths)]
    bounds = np.cumsum([0, *lengths])
    begins = np.arange(first, int(bounds[-1]) - seq_len, seq_len, dtype=np.int64)
    expected = packed.cut_rows(documents, seq_len, first)[: len(begins)]
    assert _rows(cut(bounds, begins, seq_len + 1)) == expected


def test_half_a_million_documents_are_fitted_at_once() -> None:
    lengths = np.random.default_rng(0).integers(1, 4096, 500_000)
    rows = best_fit(lengths, 4096)
    assert np.bincount(rows, weights=lengths).max() <= 4096
    assert rows.max() < 1.01 * lengths.sum() / 4096
