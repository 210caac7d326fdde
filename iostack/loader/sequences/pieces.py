"""Rows of a block from runs of tokens: gathered by one copy in C, and told apart by position ids and a loss mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from iostack.loader.order.schedule import Int64s
from iostack.loader.sequences.buffers import Buffers

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
        self._runs = runs = _padded(runs, used, width)
        self._stops = np.concatenate([np.zeros(1, np.int64), np.cumsum(runs.counts)])
        self._marks = _Marks(runs, self._stops, used) if marks else None
        values = []
        if dtype := runs.streams.dtype:
            values.append(
                _Values(runs.streams.addresses[runs.which] + runs.starts * dtype.itemsize, runs.lengths, dtype)
            )
        if self._marks:
            values.append(self._marks.positions)
        self._join = _Join(values) if values else None

    def write(self, part: slice, places: Int64s, buffers: Buffers) -> None:
        """Write rows ``part``, which has a start and a stop, to ``places`` of a block."""
        names = ["tokens", "position_ids", "loss_mask"] if self._marks else ["tokens"]
        fills_all = len(places) == len(buffers.tokens)
        arrays = [buffers.arrays[name] for name in names]
        if not fills_all:
            arrays = [np.empty((len(places), array.shape[1]), array.dtype) for array in arrays]
        self._write(part, arrays)
        if not fills_all:
            for name, array in zip(names, arrays, strict=True):
                buffers.arrays[name][places] = array

    def _write(self, part: slice, arrays: Sequence[NDArray[Any]]) -> None:
        runs = slice(int(self._stops[part.start]), int(self._stops[part.stop]))
        joined = []
        if self._runs.streams.dtype:
            joined.append((runs, arrays[0]))
        else:
            self._concatenate(runs, arrays[0].reshape(-1))
        if self._marks:
            joined.append((self._marks.positions_of(part), arrays[1]))
            self._marks.write_mask(part, arrays[2])
        if self._join:
            self._join(joined)

    def _concatenate(self, part: slice, out: NDArray[np.int64]) -> None:
        """Copy runs of arrays of several types into ``out``, which is as long as all of them."""
        runs = self._runs
        starts, lengths = runs.starts[part], runs.lengths[part]
        each = zip(runs.which[part].tolist(), starts.tolist(), (starts + lengths).tolist(), strict=True)
        np.concatenate([runs.streams.arrays[number][start:stop] for number, start, stop in each], out=out)


class _Marks:
    """Positions that restart at each run, and False where the label is of another run.

    The runs fill all rows, each one longer than the rows of positions: the last token is only a label. ``used`` are the
    tokens of each row before its padding.
    """

    def __init__(self, runs: RunRows, stops: Int64s, used: Int64s) -> None:
        rows, seq_len = len(runs.counts), len(runs.streams.arrays[-1]) - 1
        starts = np.cumsum(runs.lengths) - runs.lengths
        starts -= np.repeat(np.arange(rows), runs.counts)  # where rows are one shorter
        begins_row = np.zeros(len(starts), np.bool_)
        begins_row[stops[:-1]] = True
        self._breaks = starts[~begins_row] - 1
        self._break_stops = stops - np.arange(rows + 1)
        is_input = np.diff(starts, append=rows * seq_len) > 0  # a run may be only the label of a row's last token
        lengths = np.diff(starts[is_input], append=rows * seq_len)
        self._position_stops = np.concatenate([np.zeros(1, np.int64), np.cumsum(is_input)])[stops]
        self._padding = np.maximum(seq_len - used, 0)
        self._has_padding = bool(self._padding.any())
        self._counted = np.arange(seq_len, dtype=np.uint16 if seq_len <= 1 << 16 else np.int32)
        # Runs of 0, 1, 2, ... are gathered like tokens, at half the cost of counting in place.
        self.positions = _Values(
            np.full(len(lengths), self._counted.ctypes.data, np.int64), lengths, self._counted.dtype
        )

    def positions_of(self, part: slice) -> slice:
        """Return which of ``positions`` are those of rows ``part``."""
        return slice(int(self._position_stops[part.start]), int(self._position_stops[part.stop]))

    def write_mask(self, part: slice, loss_mask: NDArray[np.bool_]) -> None:
        """Write the mask of rows ``part``."""
        seq_len = loss_mask.shape[1]
        loss_mask[:] = True
        flat = loss_mask.reshape(-1)
        flat[self._breaks[self._break_stops[part.start] : self._break_stops[part.stop]] - part.start * seq_len] = False
        if self._has_padding:
            padding = self._padding[part]
            stops = np.cumsum(padding)
            row_ends = np.arange(1, len(padding) + 1) * seq_len
            flat[np.repeat(row_ends - stops, padding) + np.arange(stops[-1])] = False


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


class _Values(NamedTuple):
    """Runs of ``lengths`` values of ``dtype``, each in memory at an address of ``begins``."""

    begins: Int64s
    lengths: Int64s
    dtype: np.dtype[Any]


class _Join:
    """Fills arrays, one for each of ``values``, with runs of these.

    To pyarrow a run is one value of a binary array, and taking values is a loop of memcpy: 6 us for the 30 runs of a batch
    of 8 x 2048, where numpy's concatenate takes 24. The array's buffer is all memory from the first address on; its values
    are the runs, and between them what is never taken. The memory must stay where it is.
    """

    def __init__(self, values: Sequence[_Values]) -> None:
        self._dtypes = [dtype for _, _, dtype in values]
        self._first = min(int(begins.min()) for begins, _, _ in values)
        self._bounds = []
        """Where each run begins and ends, in turn, in bytes from the first on."""
        for begins, lengths, dtype in values:
            bounds = np.empty(2 * len(begins), np.int64)
            bounds[0::2] = begins - self._first
            bounds[1::2] = bounds[0::2] + lengths * dtype.itemsize
            self._bounds.append(bounds)
        self._end = max(int(bounds.max()) for bounds in self._bounds)

    def __call__(self, parts: Sequence[tuple[slice, NDArray[Any]]]) -> None:
        """Fill each array with some of the runs of its values, one after the other; it is as long as all of them."""
        arrays = [array for _, array in parts]
        sizes = [array.size * dtype.itemsize for array, dtype in zip(arrays, self._dtypes, strict=True)]
        taken = [bounds[2 * runs.start : 2 * runs.stop] for (runs, _), bounds in zip(parts, self._bounds, strict=True)]
        # pyarrow makes room for the values taken by the mean length of all, and half of all are taken.
        bounds = np.concatenate([*taken, taken[0][:1] + 2 * sum(sizes)])
        memory = pa.foreign_buffer(self._first, max(int(bounds[-1]), self._end))
        runs_and_gaps = pa.Array.from_buffers(pa.large_binary(), len(bounds) - 1, [None, pa.py_buffer(bounds), memory])
        joined = _every_other(runs_and_gaps).buffers()[2]
        at = 0
        for array, size, dtype in zip(arrays, sizes, self._dtypes, strict=True):
            array.reshape(-1)[:] = np.frombuffer(joined, dtype, array.size, at)
            at += size


def _every_other(array: pa.Array) -> pa.Array:
    """Return values 0, 2, 4, ...; ``array.take`` of numbers made anew costs 0.6 us a batch more."""
    count = (len(array) + 1) // 2
    take, options = _take()
    return take.call([array, _even_numbers(1 << count.bit_length())[:count]], options)


@cache
def _take() -> tuple[Any, Any]:
    import pyarrow.compute

    return pyarrow.compute.get_function("array_take"), pyarrow.compute.TakeOptions(boundscheck=False)


@cache
def _even_numbers(count: int) -> pa.Array:
    # `pa.array` would look whether its argument is of pandas, and import that where it is installed: 30 MB, 0.4 s.
    return pa.Array.from_buffers(pa.int64(), count, [None, pa.py_buffer(np.arange(0, 2 * count, 2))])
