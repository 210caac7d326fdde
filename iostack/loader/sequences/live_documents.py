"""Where the permuted documents of all shards being read stand, so that the rows of many are found at once.

begins    |-- shard 3 --|-- shard 7 --|-- shard 4 --|      |   where each document begins in its shard
bounds    |-- shard 3 --|-- shard 7 --|-- shard 4 --|      |   where it begins in the stream of its shard, and the end
firsts    |- 3 -|- 7 -|- 4 -|  |                               the document in which each row of the stream begins
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from iostack.loader.order.schedule import Int64s
from iostack.loader.sequences.pieces import RunRows, Streams
from iostack.plan.packing import cut_documents

_RUNS_KEPT = 16
_SPARE = 8
"""What arrays have room for beyond what is in them: one part in so many."""

Key = tuple[int, int]
"""(epoch, shard)"""


@dataclass
class _Span:
    """Entries of an arena; they may be moved."""

    start: int
    length: int


class _Arena:
    """Parallel columns of spans, end to end: ``columns`` is [columns, room]."""

    def __init__(self, num_columns: int, dtype: type[np.generic]) -> None:
        self.columns: NDArray[Any] = np.empty((num_columns, 0), dtype)
        self._used = 0

    def add(self, length: int, kept: Iterable[_Span]) -> _Span:
        """Return a span that is not filled yet. Where there is no room for it, all but those ``kept`` make room."""
        if self._used + length > self.columns.shape[1]:
            self._move_together(sorted(kept, key=lambda span: span.start), length)
        self._used += length
        return _Span(self._used - length, length)

    def _move_together(self, kept: list[_Span], needed: int) -> None:
        old, total = self.columns, sum(span.length for span in kept) + needed
        if not total + total // _SPARE <= old.shape[1] <= 2 * total:
            self.columns = np.empty((len(old), total + total // _SPARE), old.dtype)
        self._used = 0
        for span in kept:
            self.columns[:, self._used : self._used + span.length] = old[:, span.start : span.start + span.length]
            span.start = self._used
            self._used += span.length


@dataclass
class _Table:
    """Where the documents of one shard in one epoch stand, and its rows; both with the end of the last."""

    documents: _Span
    rows: _Span
    last_used: int


class LiveDocuments:
    """The tables of the shards being read: 8 bytes for each document, where shards are shorter than 2**32 tokens, and 4 for each row.

    ``permuted`` returns (begin in its shard, length) of the documents of a shard in an epoch; ``most_tokens`` is the length of
    the longest shard. Tables that were not used lately make room for others.
    """

    def __init__(self, permuted: Callable[[Key], tuple[Int64s, Int64s]], seq_len: int, *, most_tokens: int) -> None:
        self._permuted = permuted
        self._seq_len = seq_len
        self._tables: dict[Key, _Table] = {}
        dtype = np.uint32 if most_tokens < 1 << 32 else np.int64
        self._documents = _Arena(2, dtype)
        self._rows = _Arena(1, dtype)
        self._clock = 0

    @property
    def num_bytes(self) -> int:
        """What the tables take."""
        return self._documents.columns.nbytes + self._rows.columns.nbytes

    def runs(self, keys: list[Key], phases: Int64s, numbers: Int64s, rows: Int64s, streams: Streams) -> RunRows:
        """Return rows of the streams ``keys``: row ``rows[r]`` of stream ``numbers[r]``, whose tokens are the array of that number.

        Row 0 of a stream begins at token ``phases`` of it.
        """
        self._clock += 1
        for key, phase in zip(keys, phases.tolist(), strict=True):
            table = self._tables.get(key) or self._add(key, phase)
            table.last_used = self._clock
        tables = [self._tables[key] for key in keys]
        begins_in_shard, bounds = self._documents.columns
        (firsts,) = self._rows.columns
        at = np.asarray([table.rows.start for table in tables], np.int64)[numbers] + rows
        first = firsts[at].astype(np.int64)
        counts = firsts[at + 1] - first + 1  # the first token of the next row is the last label of this one
        first += np.asarray([table.documents.start for table in tables], np.int64)[numbers]
        begins = phases[numbers] + rows * self._seq_len
        pieces = cut_documents(bounds, begins, self._seq_len + 1, first=first, counts=counts)
        return RunRows(
            streams,
            np.repeat(numbers, pieces.counts),
            begins_in_shard[pieces.documents] + pieces.offsets,
            pieces.lengths,
            pieces.counts,
        )

    def _add(self, key: Key, phase: int) -> _Table:
        begins, lengths = self._permuted(key)
        bounds = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        num_rows = max(int(bounds[-1]) - 1, 0) // self._seq_len
        firsts = np.searchsorted(bounds, phase + self._seq_len * np.arange(num_rows + 1), side="right") - 1
        self._tables = {key: table for key, table in self._tables.items() if table.last_used > self._clock - _RUNS_KEPT}
        live = list(self._tables.values())
        table = _Table(
            self._documents.add(len(bounds), (table.documents for table in live)),
            self._rows.add(len(firsts), (table.rows for table in live)),
            self._clock,
        )
        documents = slice(table.documents.start, table.documents.start + table.documents.length)
        self._documents.columns[0, documents.start : documents.stop - 1] = begins
        self._documents.columns[1, documents] = bounds
        self._rows.columns[0, table.rows.start : table.rows.start + table.rows.length] = firsts
        self._tables[key] = table
        return table
