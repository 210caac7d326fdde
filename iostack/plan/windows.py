"""Lanes, segments and windows: which stretch of an epoch a lane reads, and where it shuffles.

One epoch is the axis [0, N) of all samples, shard after shard in permuted order. It is cut into L segments; in epoch e
lane l reads segment (l - eN) mod L, so the endless stream of positions g = 0, 1, 2, ... (lane g mod L) meets every
sample once in every [eN, (e+1)N). Segment j stands at the place j * stride mod L, with a stride near the golden section of
L: so successive positions come from all over the axis, not from one shard. A segment is cut into windows of W samples,
the borders of segment j shifted by (2j + 1) W / 2L, so that lanes never refill together.

    epoch e:   |--- segment 0 ---|--- segment 2 ---|--- segment 1 ---|
    windows:   |.|....|....|.....|....|....|....|..|...|....|....|...|
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import gcd

import numpy as np
from numpy.typing import NDArray

_MOST_WINDOW_SAMPLES = 1 << 17
_LEAST_LANES, _MOST_LANES = 8, 64


@dataclass(frozen=True)
class Window:
    """One window as a lane meets it: it covers the lane's times [first_time, first_time + length).

    ``axis_start`` is where it begins on the axis of ``epoch``; (``epoch``, ``segment``, ``index``) is its identity.
    """

    epoch: int
    segment: int
    index: int
    axis_start: int
    length: int
    first_time: int


@dataclass(frozen=True)
class LaneGeometry:
    """The arithmetic of one source: ``num_samples`` N, ``lanes`` L, ``window`` W in samples; all at least 1."""

    num_samples: int
    lanes: int
    window: int

    def segment_bounds(self, segment: int) -> tuple[int, int]:
        """Return [start, stop) of a segment on the axis; the first N mod L segments hold one sample more."""
        size, larger = divmod(self.num_samples, self.lanes)
        start = int(_segment_starts(self.num_samples, self.lanes)[segment])
        return start, start + size + (segment < larger)

    def window_at(self, lane: int, time: int) -> Window:
        """Return the window that holds the ``time``-th sample of ``lane``, that is position time * L + lane."""
        epoch, within = divmod(time * self.lanes + lane, self.num_samples)
        offset, segment = divmod(within, self.lanes)
        start, stop = self.segment_bounds(segment)
        shift = (2 * segment + 1) * self.window // (2 * self.lanes)
        if offset < shift:
            index, low, high = 0, 0, shift
        else:
            index = 1 + (offset - shift) // self.window
            low = shift + (index - 1) * self.window
            high = low + self.window
        high = min(high, stop - start)
        return Window(
            epoch=epoch,
            segment=segment,
            index=index,
            axis_start=start + low,
            length=high - low,
            first_time=time - (offset - low),
        )


@lru_cache
def _segment_starts(num_samples: int, lanes: int) -> NDArray[np.int64]:
    """Return where each segment begins on the axis: int64[lanes]."""
    size, larger = divmod(num_samples, lanes)
    at_place = np.argsort(np.arange(lanes) * segment_stride(lanes) % lanes)
    ends = np.cumsum(size + (at_place < larger))
    starts = np.empty(lanes, np.int64)
    starts[at_place] = np.concatenate([np.zeros(1, np.int64), ends[:-1]])
    return starts


def segment_stride(lanes: int) -> int:
    """Return how far apart on the axis successive segments stand: coprime to ``lanes``, as near its golden section as can be.

    So any number of successive segments are spread evenly (the three-gap theorem; Swierczkowski 1958).
    """
    wanted = lanes * 618_034 // 1_000_000
    return min((s for s in range(1, lanes + 1) if gcd(s, lanes) == 1), key=lambda s: (abs(s - wanted), s))


def choose_window(window_bytes: int, mean_sample_bytes: float) -> int:
    """Return W, the samples of a window of about ``window_bytes``: 1 to 131072, for a lane keeps 4 bytes for each."""
    return max(1, min(_MOST_WINDOW_SAMPLES, int(window_bytes / max(mean_sample_bytes, 1.0))))


def choose_lanes(ranks: int, num_samples: int) -> int:
    """Return the number of lanes of a new run over ``num_samples``, with some 64 samples or more in each; see ``round_lanes``."""
    return round_lanes(ranks, -(-num_samples // 64))


def round_lanes(ranks: int, wanted: int) -> int:
    """Return the smallest multiple of ``ranks`` that is at least ``wanted`` raised to a power of two from 8 to 64.

    So 1, 2, 4 and 8 ranks always choose the same number of lanes, and with it the same order.
    """
    power = min(_MOST_LANES, max(_LEAST_LANES, 1 << max(wanted - 1, 0).bit_length()))
    return -(-power // ranks) * ranks
