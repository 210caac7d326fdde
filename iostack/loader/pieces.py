"""Rows of a block from runs of tokens: gathered by one copy in C, and told apart by position ids and a loss mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from iostack.loader.buffers import Buffers
from iostack.loader.schedule import Int64s

Tokens = NDArray[np.integer[Any]]


class Streams:
    """Arrays of tokens to gather from; they must stay alive and where they are."""

    def __init__(self, arrays: Sequence[Tokens], width: int) -> None:
        dtypes = {array.dtype for array in arrays}
        self.dtype = dtypes.pop() if len(dtypes) == 1 else None
        self.padding = len(arrays)
        """The number of a last array of ``width`` zeros."""
        self.arrays = [*arrays, np.zeros(width, self.dtype or np.int64)]
        self.addresses = np.asarray([array.__array_interface__["data"][0] for array in self.arrays], np.int64)


@dataclass(frozen=True)
class RunRows:
    """Rows made of runs of tokens: parallel int64[P], row after row, and int64[rows].

    Run p is ``lengths[p]`` >= 1 tokens of array ``which[p]`` of ``streams`` from ``starts[p]`` on, inside the array. Row r
    consists of ``counts[r]`` >= 1 runs.
    """

    streams: Streams
    which: Int64s
    starts: Int64s
    lengths: Int64s
    counts: Int64s


class RowWriter:
    """Writes rows made of runs into blocks, and what tells the runs apart where ``marks`` says that there are columns for that.

    Rows are as long as those of the blocks or shorter; the rest is padding: token 0, and a run of its own. All that can be is
    computed here, for many blocks at once: a call of numpy for each block would cost more than the copying.
    """

    def __init__(self, runs: RunRows, *, marks: bool) -> None:
        width = len(runs.streams.arrays[-1])
        ends = np.cumsum(runs.lengths)
        used = np.diff(ends[np.cumsum(runs.counts) - 1], prepend=0)
        runs = _padded(runs, used, width)
        self._runs = runs
        self._used = used
        self._stops = np.concatenate([np.zeros(1, np.int64), np.cumsum(runs.counts)])
        self._marks = _Marks(runs, self._stops, width - 1) if marks else None

    def write(self, part: slice, places: Int64s, buffers: Buffers) -> None:
        """Write rows ``part``, which has a start and a stop, to ``places`` of a block."""
        names = ["tokens", "position_ids", "loss_mask"] if self._marks else ["tokens"]
        fills_all = len(places) == len(buffers.tokens)
        arrays = [buffers.arrays[name] for name in names]
        if not fills_all:
            arrays = [np.empty((len(places), array.shape[1]), array.dtype) for array in arrays]
        self._gather(slice(int(self._stops[part.start]), int(self._stops[part.stop])), arrays[0].reshape(-1))
        if self._marks:
            position_ids, loss_mask = arrays[1:]
            self._marks.write(part, position_ids, loss_mask)
            (short,) = np.nonzero(self._used[part] < loss_mask.shape[1])
            if len(short):
                loss_mask[short] &= np.arange(loss_mask.shape[1]) < self._used[part][short, np.newaxis]
        if not fills_all:
            for name, array in zip(names, arrays, strict=True):
                buffers.arrays[name][places] = array

    def _gather(self, part: slice, out: NDArray[np.int64]) -> None:
        """Copy run after run into ``out``, which is as long as all of them."""
        streams, which = self._runs.streams, self._runs.which[part]
        starts, lengths = self._runs.starts[part], self._runs.lengths[part]
        if streams.dtype is not None:
            begins = streams.addresses[which] + starts * streams.dtype.itemsize
            out[:] = _joined(begins, lengths, len(out), streams.dtype)
            return
        each = zip(which.tolist(), starts.tolist(), (starts + lengths).tolist(), strict=True)
        np.concatenate([streams.arrays[number][start:stop] for number, start, stop in each], out=out)


class _Marks:
    """Positions that restart at each run, and False where the label is of another run.

    The runs fill all rows, each one longer than the rows of positions: the last token is only a label.
    """

    def __init__(self, runs: RunRows, stops: Int64s, seq_len: int) -> None:
        rows = len(runs.counts)
        starts = np.cumsum(runs.lengths) - runs.lengths
        starts -= np.repeat(np.arange(rows), runs.counts)  # where rows are one shorter
        begins_row = np.zeros(len(starts), np.bool_)
        begins_row[stops[:-1]] = True
        self._breaks = starts[~begins_row] - 1
        self._break_stops = stops - np.arange(rows + 1)
        is_input = np.diff(starts, append=rows * seq_len) > 0  # a run may be only the label of a row's last token
        self._lengths = np.diff(starts[is_input], append=rows * seq_len)
        self._length_stops = np.concatenate([np.zeros(1, np.int64), np.cumsum(is_input)])[stops]
        self._counted = np.arange(seq_len, dtype=np.uint16 if seq_len <= 1 << 16 else np.int64)

    def write(self, part: slice, position_ids: NDArray[np.int64], loss_mask: NDArray[np.bool_]) -> None:
        """Write the rows ``part``; the runs of padding are like any other."""
        lengths = self._lengths[self._length_stops[part.start] : self._length_stops[part.stop]]
        begins = np.full(len(lengths), self._counted.ctypes.data)
        # Runs of 0, 1, 2, ... are gathered like tokens, at half the cost of counting in place.
        position_ids.reshape(-1)[:] = _joined(begins, lengths, position_ids.size, self._counted.dtype)
        breaks = self._breaks[self._break_stops[part.start] : self._break_stops[part.stop]]
        loss_mask[:] = True
        loss_mask.reshape(-1)[breaks - part.start * loss_mask.shape[1]] = False


def _padded(runs: RunRows, used: Int64s, width: int) -> RunRows:
    """Return rows that are all ``width`` long; ``used`` are their lengths."""
    (short,) = np.nonzero(used < width)
    if not len(short):
        return runs
    at = np.cumsum(runs.counts)[short]
    counts = runs.counts.copy()
    counts[short] += 1
    return RunRows(
        runs.streams,
        np.insert(runs.which, at, runs.streams.padding),
        np.insert(runs.starts, at, 0),
        np.insert(runs.lengths, at, width - used[short]),
        counts,
    )


def _joined(begins: Int64s, lengths: Int64s, total: int, dtype: np.dtype[Any]) -> Tokens:
    """Return runs of ``lengths`` values, ``total`` in all, in one array: each is in memory at address ``begins``.

    To pyarrow a run is one value of a binary array, and taking values is a loop of memcpy: 6 us for the 30 runs of a batch
    of 8 x 2048, where numpy's concatenate takes 24. The array's buffer is all memory from the first address on; its values
    are the runs, and between them what is never taken. The memory must stay where it is until this returns.
    """
    base = int(begins.min())
    offsets = np.empty(2 * len(begins) + 1, np.int64)
    offsets[0:-1:2] = begins - base
    offsets[1::2] = offsets[0:-1:2] + lengths * dtype.itemsize
    # pyarrow makes room for the values taken by the mean length of all, and half of all are taken.
    offsets[-1] = offsets[0] + 2 * total * dtype.itemsize
    memory = pa.foreign_buffer(base, int(offsets.max()))
    values = pa.Array.from_buffers(pa.large_binary(), 2 * len(begins), [None, pa.py_buffer(offsets), memory])
    taken = values.take(pa.array(np.arange(0, 2 * len(begins), 2)))
    return np.frombuffer(taken.buffers()[2], dtype, total)
