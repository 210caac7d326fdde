"""Values that are slices of mapped shards, which pyarrow makes Python's: of many shards in one call.

They are given to it as views (https://arrow.apache.org/docs/format/Columnar.html#variable-size-binary-view-layout), 16 bytes
each: of a value of up to 12 bytes its length and the value, of a longer one its length, its first 4 bytes, and where it lies
in which buffer. The first 4 bytes, which only comparisons use, are left out: looking at them would read every value twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from iostack.corpus.contracts import Slices

_INLINE_BYTES = 12
_BUFFER_BITS = 30
"""Views count in int32: of a larger map there is a buffer from every GiB on."""
_MOST_BYTES = (1 << 31) - 1


def gathered(pieces: Sequence[Slices], order: NDArray[np.int64]) -> list[Any]:
    """Return the values of some slices, all bytes or all text, in an order: ``order`` numbers those of all pieces.

    Raises:
        ValueError: a slice is not in its map or too long, or text is not UTF-8.
    """
    import pyarrow as pa

    if not len(order):
        return []
    starts, stops = (np.concatenate(each)[order] for each in zip(*((piece.starts, piece.stops) for piece in pieces)))
    lengths = stops - starts
    numbers = np.arange(len(pieces)).repeat([len(piece) for piece in pieces])[order]
    ends = np.array([len(piece.data) for piece in pieces])
    if lengths.min() < 0 or lengths.max() > _MOST_BYTES or starts.min() < 0 or (stops > ends[numbers]).any():
        raise ValueError("a value does not lie in its shard, or is longer than 2 GiB")
    buffers = [_buffers(piece.data) for piece in pieces]
    first_buffers = np.cumsum([0, *map(len, buffers)])
    views = np.zeros((len(order), 4), np.int32)
    views[:, 0] = lengths
    views[:, 2] = first_buffers[numbers] + (starts >> _BUFFER_BITS)
    views[:, 3] = starts & ((1 << _BUFFER_BITS) - 1)
    if lengths.min() <= _INLINE_BYTES:
        _write_inline(views, pieces, numbers, starts)
    view, whole = (pa.string_view(), pa.large_string()) if pieces[0].is_text else (pa.binary_view(), pa.large_binary())
    memory = [_validity(pieces, order), pa.py_buffer(views), *(buffer for some in buffers for buffer in some)]
    # Gathered first, without holding the GIL: what Python strings are made of is in the caches then.
    return list(pa.Array.from_buffers(view, len(views), memory).cast(whole).to_pylist())


def _buffers(data: Any) -> list[Any]:
    import pyarrow as pa

    whole = pa.py_buffer(data)
    return [whole.slice(start) for start in range(0, max(1, len(data)), 1 << _BUFFER_BITS)]


def _write_inline(
    views: NDArray[np.int32], pieces: Sequence[Slices], numbers: NDArray[np.int64], starts: NDArray[np.int64]
) -> None:
    """Write the short values into their views."""
    is_short = views[:, 0] <= _INLINE_BYTES
    within = np.arange(_INLINE_BYTES)
    for number, piece in enumerate(pieces):
        short = np.flatnonzero(is_short & (numbers == number))
        if len(short) and len(piece.data):
            holds = within < views[short, :1]
            found = np.frombuffer(piece.data, np.uint8)[np.where(holds, starts[short, None] + within, 0)]
            views[short, 1:] = np.where(holds, found, 0).astype(np.uint8).view(np.int32)


def _validity(pieces: Sequence[Slices], order: NDArray[np.int64]) -> Any:
    import pyarrow as pa

    if all(piece.nulls is None for piece in pieces):
        return None
    nulls = np.concatenate([np.zeros(len(piece), np.bool_) if piece.nulls is None else piece.nulls for piece in pieces])
    return pa.py_buffer(np.packbits(~nulls[order], bitorder="little"))
