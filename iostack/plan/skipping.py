"""Samples that must never be given: a list of identities, and the plan of a source that goes around them."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from iostack.errors import PlanError
from iostack.plan.identity import row_identities
from iostack.plan.indexed import IndexedPlan, Rows

Int64s = NDArray[np.int64]

_MOST_WINDOWS = 100


class SkipList:
    """Identities of samples, in any order, repeated or not. Immutable; O(samples * log(listed)) to look up."""

    def __init__(self, identities: Iterable[int] = ()) -> None:
        listed = np.fromiter(identities, np.int64)
        self.identities = np.unique(listed) if len(listed) else listed  # numpy imports numpy.ma for it: 5 ms

    def __len__(self) -> int:
        return len(self.identities)

    def holds(self, identities: Int64s) -> NDArray[np.bool_]:
        """Return which of some identities are listed."""
        if not len(self):
            return np.zeros(len(identities), np.bool_)
        places = np.minimum(np.searchsorted(self.identities, identities), len(self) - 1)
        listed: NDArray[np.bool_] = self.identities[places] == identities
        return listed


class SkippingPlan(IndexedPlan):
    """The order of a source without the samples of a list: at their positions stands the first substitute not listed."""

    def __init__(self, counts: Int64s, *, seed: int, lanes: int, window: int, source: int, skip: SkipList) -> None:
        super().__init__(counts, seed=seed, lanes=lanes, window=window)
        self._source = source
        self._skip = skip

    def locate(self, positions: Int64s) -> Rows:
        """Return where the samples at ``positions`` stand; costs a hash and a bisection per position more.

        Raises:
            PlanError: everything is listed, as far as the lane's windows were looked at.
        """
        rows = super().locate(positions)
        (skipped,) = np.nonzero(self._skip.holds(row_identities(self._source, rows.shards, rows.rows)))
        for index in skipped.tolist():
            instead = self._instead(int(positions[index]))
            rows.epochs[index], rows.shards[index], rows.rows[index] = (
                instead.epochs[0],
                instead.shards[0],
                instead.rows[0],
            )
        return rows

    def substitutes(self, position: int) -> Rows:
        """Return what may stand in for the sample at ``position``, best first, without listed ones; any thread may call it."""
        rows = super().substitutes(position)
        return self._without_listed(rows)

    def _instead(self, position: int) -> Rows:
        """Return what stands at a position whose own sample is listed: of its window, else of the lane's next ones."""
        rows = self.substitutes(position)
        time, lane = divmod(position, self.lanes)
        for _ in range(_MOST_WINDOWS):
            if len(rows.rows):
                return rows
            time = self.window_end(lane, time)
            window, table = self._window(lane, time)
            epochs = np.full(window.length, window.epoch, np.int64)
            rows = self._without_listed(self._rows_of(epochs, window.axis_start + table))
        raise PlanError(
            f"source {self._source}: the skip list leaves nothing in {_MOST_WINDOWS} windows from position {position} on",
            hint="skip fewer samples, or leave the shards out of the corpus",
        )

    def _without_listed(self, rows: Rows) -> Rows:
        kept = ~self._skip.holds(row_identities(self._source, rows.shards, rows.rows))
        return Rows(rows.epochs[kept], rows.shards[kept], rows.rows[kept])
