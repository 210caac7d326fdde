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
    consists of ``counts[r]`` runs, together as long as a row of the block or shorter; the rest of it is padding: token 0.
    """

    streams: Streams
    which: Int64s
    starts: Int64s
    lengths: Int64s
    counts: Int64s

    def rows(self, part: slice) -> RunRows:
        """Return some of the rows; ``part`` has a start and a stop."""
        first = int(self.counts[: part.start].sum())
        counts = self.counts[part]
        runs = slice(first, first + int(counts.sum()))
        return RunRows(self.streams, self.which[runs], self.starts[runs], self.lengths[runs], counts)


def write_rows(runs: RunRows, places: Int64s, buffers: Buffers) -> None:
    """Write the rows to ``places`` of a block, and what tells their runs apart where it has columns for that."""
    names = [name for name in ("tokens", "position_ids", "loss_mask") if name in buffers.arrays]
    fills_all = len(places) == len(buffers.tokens)
    arrays = [buffers.arrays[name] for name in names]
    if not fills_all:
        arrays = [np.empty((len(places), array.shape[1]), array.dtype) for array in arrays]
    width = buffers.tokens.shape[1]
    ends = np.cumsum(runs.lengths)
    used = np.diff(ends[np.cumsum(runs.counts) - 1], prepend=0)
    runs = _padded(runs, used, width)
    gather(runs, out=arrays[0].reshape(-1))
    if len(arrays) > 1:
        mark_documents(*arrays[1:], runs=runs, used=used)
    if not fills_all:
        for name, array in zip(names, arrays, strict=True):
            buffers.arrays[name][places] = array


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


def gather(runs: RunRows, *, out: NDArray[np.int64]) -> None:
    """Copy run after run into ``out``, which is as long as all of them."""
    if runs.streams.dtype is not None:
        out[:] = _joined(runs, len(out), runs.streams.dtype)
        return
    arrays, stops = runs.streams.arrays, runs.starts + runs.lengths
    each = zip(runs.which.tolist(), runs.starts.tolist(), stops.tolist(), strict=True)
    np.concatenate([arrays[number][start:stop] for number, start, stop in each], out=out)


def _joined(runs: RunRows, total: int, dtype: np.dtype[Any]) -> Tokens:
    """Return all runs in one array of ``dtype``, which is that of all streams.

    To pyarrow a run is one value of a binary array, and taking values is a loop of memcpy: 2 us for the 30 runs of a batch
    of 8 x 2048, where numpy takes 12 beside the copying. The array's buffer is all memory from the first stream on; its
    values are the runs, and between them what is never taken.
    """
    addresses = runs.streams.addresses
    base = int(addresses.min())
    offsets = np.empty(2 * len(runs.which) + 1, np.int64)
    offsets[0:-1:2] = addresses[runs.which] - base + runs.starts * dtype.itemsize
    offsets[1::2] = offsets[0:-1:2] + runs.lengths * dtype.itemsize
    # pyarrow makes room for the values taken by the mean length of all, and half of all are taken.
    offsets[-1] = offsets[0] + 2 * total * dtype.itemsize
    memory = pa.foreign_buffer(base, int(offsets.max()), base=runs.streams)
    values = pa.Array.from_buffers(pa.large_binary(), 2 * len(runs.which), [None, pa.py_buffer(offsets), memory])
    taken = values.take(pa.array(np.arange(0, 2 * len(runs.which), 2)))
    return np.frombuffer(taken.buffers()[2], dtype, total)


def mark_documents(position_ids: NDArray[Any], loss_mask: NDArray[np.bool_], *, runs: RunRows, used: Int64s) -> None:
    """Write positions that restart at each run, and False where the label is not of the same run, or is padding.

    Rows of ``runs`` are one longer than those of ``position_ids``: their last token is only a label. ``used`` tokens of each
    are no padding.
    """
    rows, seq_len = position_ids.shape
    starts = np.cumsum(runs.lengths) - runs.lengths
    starts -= np.repeat(np.arange(rows), runs.counts)  # where rows are one shorter
    begins_row = np.zeros(len(starts), np.bool_)
    begins_row[np.cumsum(runs.counts) - runs.counts] = True
    loss_mask[:] = True
    loss_mask.reshape(-1)[starts[~begins_row] - 1] = False
    (short,) = np.nonzero(used < seq_len)
    if len(short):
        loss_mask[short] &= np.arange(seq_len) < used[short, np.newaxis]
    begins_input = np.ones(len(starts), np.bool_)  # unlike a run that begins with the label of a row's last token
    np.not_equal(starts[1:], starts[:-1], out=begins_input[:-1])
    begins_input[-1:] = starts[-1:] < rows * seq_len
    starts = starts[begins_input]
    positions = position_ids.reshape(-1)
    positions[:] = 1
    positions[starts[1:]] -= np.diff(starts)
    positions[:1] = 0
    np.cumsum(positions, out=positions)
