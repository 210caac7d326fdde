"""Lanes, segments and windows: which stretch of an epoch a lane reads, and where it shuffles.

One epoch is the axis [0, N) of all samples, shard after shard in permuted order. It is cut into L segments; in epoch e
lane l reads segment (l - eN) mod L, so the endless stream of positions g = 0, 1, 2, ... (lane g mod L) meets every
sample once in every [eN, (e+1)N). A segment is cut into windows of W samples, the borders of segment j shifted by
(2j + 1) W / 2L, so that lanes never refill together.

    epoch e:   |--- segment 0 ---|--- segment 1 ---|--- segment 2 ---|
    windows:   |.|....|....|.....|...|....|....|...|....|....|....|..|
"""

from __future__ import annotations

from dataclasses import dataclass

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
        start = segment * size + min(segment, larger)
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
