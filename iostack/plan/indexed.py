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
        self._windows: dict[int, tuple[Window, NDArray[np.uint32]]] = {}

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
            np.cumsum(self.counts[shards], out=starts[1:])
            order = self._orders[epoch] = ShardOrder(shards, starts)
            if len(self._orders) > _LIVE_EPOCHS:
                self._orders.popitem(last=False)
        return order

    def lane_rows(self, lane: int, times: Int64s, epochs: Int64s, axis: Int64s) -> None:
        """Write the epoch and the axis index of a lane's samples at ``times`` into the two outputs.

        All three arrays are int64 of one length; ``times`` ascend and none is repeated.
        """
        done = 0
        while done < len(times):
            first = int(times[done])
            window, table = self._window(lane, first)
            end = window.first_time + window.length
            stop = len(times) if times[-1] < end else done + int(np.searchsorted(times[done:], end))
            offset = first - window.first_time
            if int(times[stop - 1]) - first == stop - done - 1:
                draws = table[offset : offset + stop - done]
            else:
                draws = table[times[done:stop] - window.first_time]
            np.add(draws, window.axis_start, out=axis[done:stop], dtype=np.int64)
            epochs[done:stop] = window.epoch
            done = stop

    def rows_of(self, epochs: Int64s, axis: Int64s) -> Rows:
        """Return shard and row of each (epoch, axis index)."""
        first = int(epochs[0]) if len(epochs) else 0
        if (epochs == first).all():
            return Rows(epochs, *self._split(first, axis))
        shards, rows = np.empty_like(axis), np.empty_like(axis)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            shards[chosen], rows[chosen] = self._split(int(epoch), axis[chosen])
        return Rows(epochs, shards, rows)

    def locate(self, positions: Int64s) -> Rows:
        """Return where the samples at ``positions`` (any order, repeated or not) stand."""
        epochs, axis = np.empty_like(positions), np.empty_like(positions)
        times, lanes = np.divmod(positions, self.lanes)
        for lane in np.unique(lanes):
            (chosen,) = np.nonzero(lanes == lane)
            lane_times, places = np.unique(times[chosen], return_inverse=True)
            lane_epochs, lane_axis = np.empty_like(lane_times), np.empty_like(lane_times)
            self.lane_rows(int(lane), lane_times, lane_epochs, lane_axis)
            epochs[chosen], axis[chosen] = lane_epochs[places], lane_axis[places]
        return self.rows_of(epochs, axis)

    def substitutes(self, position: int) -> Rows:
        """Return what may stand in for a bad sample at ``position``, best first: the draws after it, around its window.

        Draw k for offset j is (j + k) mod window length, k from 1; empty where the window holds one sample.
        """
        time, lane = divmod(position, self.lanes)
        window, table = self._window(lane, time)
        axis = window.axis_start + np.roll(table.astype(np.int64), -(time - window.first_time))[1:]
        return self.rows_of(np.full(len(axis), window.epoch, np.int64), axis)

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

    def _window(self, lane: int, time: int) -> tuple[Window, NDArray[np.uint32]]:
        known = self._windows.get(lane)
        if known is not None and 0 <= time - known[0].first_time < known[0].length:
            return known
        window = self.geometry.window_at(lane, time)
        key = derive_key(self.seed, _WINDOW_ORDER, window.epoch, window.segment, window.index)
        known = self._windows[lane] = (window, permutation(key, window.length).astype(np.uint32))
        return known

    def _split(self, epoch: int, axis: Int64s) -> tuple[Int64s, Int64s]:
        order = self.shard_order(epoch)
        places = np.searchsorted(order.starts, axis, side="right") - 1
        return order.shards[places], axis - order.starts[places]
