"""Pieces: the rows of a source, laid end to end, cut into runs of equal length; each becomes one shard."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray


class Run(NamedTuple):
    """Rows [start, stop) of one shard."""

    shard: int
    start: int
    stop: int


@dataclass(frozen=True)
class Piece:
    """One piece: its number, its first row counted over the whole source, and where its rows are."""

    number: int
    first_row: int
    runs: tuple[Run, ...]

    @property
    def num_rows(self) -> int:
        """Rows of all its runs."""
        return sum(run.stop - run.start for run in self.runs)


class Pieces:
    """All pieces of shards with these counts, ``rows`` rows each but for the last. Nothing is kept per piece."""

    def __init__(self, counts: ArrayLike, rows: int) -> None:
        self._ends: NDArray[np.int64] = np.cumsum(np.asarray(counts, np.int64))
        self.rows = rows
        self.total_rows = int(self._ends[-1]) if len(self._ends) else 0

    def __len__(self) -> int:
        return (self.total_rows + self.rows - 1) // self.rows

    def __getitem__(self, number: int) -> Piece:
        """Return one piece.

        Raises:
            IndexError: beyond the last.
        """
        if not 0 <= number < len(self):
            raise IndexError(f"piece {number} of {len(self)}")
        first = number * self.rows
        return Piece(number, first, tuple(self.runs(first, min(first + self.rows, self.total_rows))))

    def runs(self, row: int, stop: int) -> Iterator[Run]:
        """Yield where the rows [row, stop), counted over all shards, are."""
        shard = int(np.searchsorted(self._ends, row, side="right"))
        while row < stop:
            begin = int(self._ends[shard - 1]) if shard else 0
            end = min(stop, int(self._ends[shard]))
            if end > row:
                yield Run(shard, row - begin, end - begin)
            row, shard = end, shard + 1
