"""Columns over bytes that lie in a map: pyarrow gathers them later, of many shards at once and without holding the GIL.

A view of Arrow (https://arrow.apache.org/docs/format/Columnar.html#variable-size-binary-view-layout) is 16 bytes: of a value
of up to 12 bytes its length and the value, of a longer one its length, its first 4 bytes, and where it lies in which buffer.
The first 4 bytes, which only comparisons use, are left out here: looking at them would read every value.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from iostack.corpus.contracts import Column
from iostack.corpus.mapping import Mapped

_INLINE_BYTES = 12
_BUFFER_BITS = 30
_MOST_BYTES = (1 << 31) - 1
"""Views count in int32: of a larger file there is a buffer from every GiB on."""
_LARGEST_INT64 = (1 << 63) - 1


def views(
    mapped: Mapped, starts: NDArray[Any], stops: NDArray[Any], nulls: NDArray[np.bool_] | None, *, is_text: bool
) -> Any:
    """Return the bytes [start, stop) of a map as an array of pyarrow; None where one is too long, or not in the map.

    That text is UTF-8 is found out where it is used.
    """
    import pyarrow as pa

    lengths = stops - starts
    if not len(lengths):
        return []
    if lengths.min() < 0 or lengths.max() > _MOST_BYTES or starts.min() < 0 or stops.max() > len(mapped):
        return None
    found = np.zeros((len(lengths), 4), np.int32)
    found[:, 0] = lengths
    found[:, 2] = starts >> _BUFFER_BITS
    found[:, 3] = starts & ((1 << _BUFFER_BITS) - 1)
    if lengths.min() <= _INLINE_BYTES:
        short = np.flatnonzero(lengths <= _INLINE_BYTES)
        within = np.arange(_INLINE_BYTES)
        at = np.where(within < lengths[short, None], starts[short, None] + within, 0)
        found[short, 1:] = (
            np.where(within < lengths[short, None], np.frombuffer(mapped, np.uint8)[at], 0)
            .astype(np.uint8)
            .view(np.int32)
        )
    validity = None if nulls is None else pa.py_buffer(np.packbits(~nulls, bitorder="little"))
    whole = pa.py_buffer(mapped)
    buffers = [whole.slice(start) for start in range(0, len(mapped), 1 << _BUFFER_BITS)]
    type = pa.string_view() if is_text else pa.binary_view()
    return pa.Array.from_buffers(type, len(found), [validity, pa.py_buffer(found), *buffers])


def as_numbers(numbers: NDArray[Any]) -> Column:
    """Return numbers as Python's: in an array, or in a list where integers are too large for one."""
    if numbers.dtype == np.uint64 and len(numbers) and numbers.max() > _LARGEST_INT64:
        return numbers.tolist()
    return np.asarray(numbers, np.float64 if numbers.dtype.kind == "f" else np.int64)
