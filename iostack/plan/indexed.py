"""The order of one source whose counts are known: position -> (epoch, shard, row), by arithmetic alone.

What is kept in memory is O(shards) per live epoch and one array of 4 bytes per sample of each lane's live window.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from iostack.errors import PlanError
from iostack.plan.keyed import derive_key, permutation
from iostack.plan.windows import LaneGeometry, Window

_SHARD_ORDER, _WINDOW_ORDER = 1, 2
"""Purposes of keys, so that no two permutations share one."""
_LIVE_EPOCHS = 3

Int64s = NDArray[np.int64]


@dataclass(frozen=True)
class ShardOrder:
    """One epoch's axis: shard ``shards[i]`` covers [``starts[i]``, ``starts[i + 1]``) of it."""

    shards: Int64s
    starts: Int64s


@dataclass(frozen=True)
class Rows:
    """Where samples stand: parallel int64 arrays of any one length."""

    epochs: Int64s
    shards: Int64s
    rows: Int64s

    def by_shard(self) -> list[tuple[int, Int64s]]:
        """Return each shard, ascending, and which of the samples stand in it, in order.

        One sort: ``np.unique`` and a search for each shard cost a batch of 256 rows of 8 shards four times as much.
        """
        if not len(self.shards):
            return []
        order = np.argsort(self.shards, kind="stable")
        ordered = self.shards[order]
        firsts = [0, *(np.flatnonzero(ordered[1:] != ordered[:-1]) + 1).tolist()]
        stops = [*firsts[1:], len(order)]
        return [(shard, order[first:stop]) for shard, first, stop in zip(ordered[firsts].tolist(), firsts, stops)]


class IndexedPlan:
    """The endless order of one source.

    ``counts`` is int64[S], the samples of each shard (zeros allowed); it is not copied. Not thread-safe: one plan
    belongs to one thread.

    Raises:
        PlanError: no samples at all, or a count, lane count or window that is impossible.
    """

    def __init__(self, counts: Int64s, *, seed: int, lanes: int, window: int) -> None:
        if lanes < 1 or window < 1:
            raise PlanError(f"lanes ({lanes}) and window ({window}) must be at least 1")
        if len(counts) and int(counts.min()) < 0:
            raise PlanError(f"shard {int(counts.argmin())} has a negative number of samples: {int(counts.min())}")
        num_samples = int(counts.sum())
        if num_samples == 0:
            raise PlanError(f"there are no samples to plan: {len(counts)} shards, all empty")
        self.counts = counts
        self.seed = seed
        self.geometry = LaneGeometry(num_samples, lanes, window)
        self._orders: OrderedDict[int, ShardOrder] = OrderedDict()
        # The live window of each lane: where it begins in the lane's time and on the axis of its epoch, and its shuffle.
        self._epochs = np.zeros(lanes, np.int64)
        self._axis_starts = np.zeros(lanes, np.int64)
        self._first_times = np.zeros(lanes, np.int64)
        self._lengths = np.zeros(lanes, np.int64)
        self._tables = np.empty((lanes, min(window, -(-num_samples // lanes))), np.uint32)

    @property
    def num_samples(self) -> int:
        """N: the samples of one epoch."""
        return self.geometry.num_samples

    @property
    def lanes(self) -> int:
        """L: the fixed sub-streams; position g belongs to lane g mod L."""
        return self.geometry.lanes

    def shard_order(self, epoch: int) -> ShardOrder:
        """Return the permuted shards of an epoch and where each begins; O(S), kept for the latest epochs."""
        order = self._orders.get(epoch)
        if order is None:
            shards = permutation(derive_key(self.seed, _SHARD_ORDER, epoch), len(self.counts))
            starts = np.zeros(len(shards) + 1, np.int64)
            np.take(self.counts, shards, out=starts[1:])
            np.cumsum(starts[1:], out=starts[1:])
            order = self._orders[epoch] = ShardOrder(shards, starts)
            if len(self._orders) > _LIVE_EPOCHS:
                self._orders.popitem(last=False)
        return order

    def locate(self, positions: Int64s) -> Rows:
        """Return where the samples at ``positions`` (any order, repeated or not) stand.

        A lookup in the tables of the lanes' live windows; only lanes that leave their window compute a new table. Cheapest
        in ascending order.
        """
        times, lanes = np.divmod(positions, self.lanes)
        offsets = times - self._first_times[lanes]
        inside = (offsets >= 0) & (offsets < self._lengths[lanes])
        if inside.all():
            epochs = self._epochs[lanes]
            return self._rows_of(epochs, self._axis_starts[lanes] + self._tables[lanes, offsets])
        epochs, axis = np.empty_like(positions), np.empty_like(positions)
        (pending,) = np.nonzero(~inside)
        (ready,) = np.nonzero(inside)
        while True:
            ready_lanes = lanes[ready]
            epochs[ready] = self._epochs[ready_lanes]
            axis[ready] = self._axis_starts[ready_lanes] + self._tables[ready_lanes, offsets[ready]]
            if not len(pending):
                return self._rows_of(epochs, axis)
            in_order = pending[np.lexsort((times[pending], lanes[pending]))]
            sorted_lanes = lanes[in_order]
            first = in_order[np.flatnonzero(np.diff(sorted_lanes, prepend=-1))]
            for lane, time in zip(lanes[first].tolist(), times[first].tolist(), strict=True):
                self._enter_window(lane, time)
            offsets[pending] = times[pending] - self._first_times[lanes[pending]]
            inside_now = (offsets[pending] >= 0) & (offsets[pending] < self._lengths[lanes[pending]])
            assert inside_now.any(), "a window does not hold the time it was made for"
            ready, pending = pending[inside_now], pending[~inside_now]

    def substitutes(self, position: int) -> Rows:
        """Return what may stand in for a bad sample at ``position``, best first: the draws after it, around its window.

        Draw k for offset j is (j + k) mod window length, k from 1. A window that the border of its segment cut short goes
        on into the lane's next one, for it may hold a single sample. Computes windows anew and changes none: any thread
        may call it.
        """
        time, lane = divmod(position, self.lanes)
        window, table = self._window(lane, time)
        axis = window.axis_start + np.roll(table, -(time - window.first_time))[1:]
        epochs = np.full(len(axis), window.epoch, np.int64)
        if window.length < self.geometry.window:
            after, table = self._window(lane, window.first_time + window.length)
            axis = np.concatenate([axis, after.axis_start + table])
            epochs = np.concatenate([epochs, np.full(after.length, after.epoch, np.int64)])
        return self._rows_of(epochs, axis)

    def live_shards(self, lane: int, time: int) -> Int64s:
        """Return the shards that the window of a lane at ``time`` reads, in the order of the axis."""
        window = self.geometry.window_at(lane, time)
        order = self.shard_order(window.epoch)
        first = int(np.searchsorted(order.starts, window.axis_start, side="right")) - 1
        stop = int(np.searchsorted(order.starts, window.axis_start + window.length, side="left"))
        shards = order.shards[first:stop]
        return shards[self.counts[shards] > 0]

    def window_end(self, lane: int, time: int) -> int:
        """Return the lane's first time after the window that holds ``time``."""
        window = self.geometry.window_at(lane, time)
        return window.first_time + window.length

    def _rows_of(self, epochs: Int64s, axis: Int64s) -> Rows:
        """Return shard and row of each (epoch, axis index)."""
        first = int(epochs[0]) if len(epochs) else 0
        if (epochs == first).all():
            return Rows(epochs, *self._split(first, axis))
        shards, rows = np.empty_like(axis), np.empty_like(axis)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            shards[chosen], rows[chosen] = self._split(int(epoch), axis[chosen])
        return Rows(epochs, shards, rows)

    def _enter_window(self, lane: int, time: int) -> None:
        window, table = self._window(lane, time)
        self._tables[lane, : window.length] = table
        self._epochs[lane] = window.epoch
        self._axis_starts[lane] = window.axis_start
        self._first_times[lane] = window.first_time
        self._lengths[lane] = window.length

    def _window(self, lane: int, time: int) -> tuple[Window, NDArray[np.int64]]:
        window = self.geometry.window_at(lane, time)
        key = derive_key(self.seed, _WINDOW_ORDER, window.epoch, window.segment, window.index)
        return window, permutation(key, window.length)

    def _split(self, epoch: int, axis: Int64s) -> tuple[Int64s, Int64s]:
        order = self.shard_order(epoch)
        places = np.searchsorted(order.starts, axis, side="right") - 1
        return order.shards[places], axis - order.starts[places]
