"""Flat columns of a mapped Arrow file, gathered by numpy from where their buffers lie."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from iostack.corpus.arrow_messages import damaged
from iostack.corpus.contracts import Column, Slices
from iostack.corpus.mapping import Mapped
from iostack.errors import SampleError

if TYPE_CHECKING:
    from numpy.typing import NDArray

Values = tuple[list[Any], dict[int, SampleError]]
"""Of each row its value, and by place the errors of those that are bad."""

_NUMBERS = {
    "int8": "<i1",
    "int16": "<i2",
    "int32": "<i4",
    "int64": "<i8",
    "uint8": "<u1",
    "uint16": "<u2",
    "uint32": "<u4",
    "uint64": "<u8",
    "float": "<f4",
    "double": "<f8",
}
_TEXTS = {"string": "<i4", "binary": "<i4", "large_string": "<i8", "large_binary": "<i8"}
FLAT = frozenset({*_NUMBERS, *_TEXTS})
"""Names of the Arrow types that are read here."""

_NOWHERE = -1
_LARGEST_INT64 = (1 << 63) - 1


def place_buffers(mapped: Mapped, column: Any, layout: str, *, name: str) -> list[int]:
    """Return where a column of a batch lies in the file: validity (-1: no nulls), offsets or numbers, data.

    Raises:
        ShardError: the buffers are too small for their rows, run backwards, or do not lie in the file as Arrow aligns them.
    """
    import pyarrow as pa

    column.validate()  # of buffers: that they are large enough
    if len(column) == 0:
        return [_NOWHERE, 0, 0]
    whole = pa.py_buffer(mapped)
    buffers = column.buffers()
    starts = [_NOWHERE if buffer is None or not buffer.size else buffer.address - whole.address for buffer in buffers]
    ends = [0 if buffer is None or start < 0 else start + buffer.size for start, buffer in zip(starts, buffers)]
    width = int((_NUMBERS | _TEXTS)[layout][2])
    if column.offset or starts[1] < 0 or starts[1] % width or max(ends) > len(mapped) or min(starts) < _NOWHERE:
        raise damaged(name, f"a column of {layout} does not lie in the file as it should")
    if layout in _NUMBERS:
        return [starts[0], starts[1], 0]
    _check_offsets(np.frombuffer(mapped, _TEXTS[layout], len(column) + 1, starts[1]), ends[2] - max(starts[2], 0), name)
    return [starts[0], starts[1], max(starts[2], 0)]


def _check_offsets(offsets: NDArray[Any], data_bytes: int, name: str) -> None:
    """Refuse values that run backwards or out of their buffer: once, so that reading rows need not look again."""
    if offsets[0] < 0 or offsets[-1] > data_bytes or bool(np.any(offsets[1:] < offsets[:-1])):
        raise damaged(name, f"values from {offsets[0]:,} to {offsets[-1]:,}, not in order, of {data_bytes:,} bytes")


class FlatColumn:
    """One column of strings, bytes or numbers. ``places`` is int64[3 * batches], see ``place_buffers``.

    What is gathered are arrays as long as the rows that are asked for, often a few dozen: there each numpy call counts.
    """

    def __init__(self, mapped: Mapped, layout: str, places: NDArray[Any], name: str) -> None:
        self._name = name
        self._mapped = mapped
        self._is_text = layout in ("string", "large_string")
        self._is_number = layout in _NUMBERS
        dtype = np.dtype((_NUMBERS | _TEXTS)[layout])
        self._words = np.frombuffer(mapped, dtype, len(mapped) // dtype.itemsize)
        self._bytes = np.frombuffer(mapped, np.uint8)
        self._validity, first, self._data = np.ascontiguousarray(places.reshape(-1, 3).T)
        self._first = first // dtype.itemsize
        self._has_nulls = bool((self._validity >= 0).any())

    def values(self, batches: NDArray[Any], inside: NDArray[Any]) -> Values:
        """Return the value of each row, and the errors of bad ones by their place."""
        at = self._first[batches]
        at += inside
        values, bad = (self._words[at].tolist(), {}) if self._is_number else self._slices(at, self._data[batches])
        if self._has_nulls:
            for place in np.flatnonzero(self._is_null(self._validity[batches], inside)).tolist():
                values[place] = None
                bad.pop(place, None)
        return values, bad

    def column(self, batches: NDArray[Any], inside: NDArray[Any]) -> Column:
        """Return the values of the rows as an array or as slices; in a list where that cannot be."""
        at = self._first[batches] + inside
        nulls = self._is_null(self._validity[batches], inside) if self._has_nulls else None
        if not self._is_number:
            data = self._data[batches]
            return Slices(self._mapped, self._words[at] + data, self._words[at + 1] + data, nulls, self._is_text)
        numbers = self._words[at]
        if nulls is not None and nulls.any():
            return self.values(batches, inside)[0]
        if numbers.dtype == np.uint64 and len(numbers) and numbers.max() > _LARGEST_INT64:
            return numbers.tolist()
        return np.asarray(numbers, np.float64 if numbers.dtype.kind == "f" else np.int64)

    def _is_null(self, validity: NDArray[Any], inside: NDArray[Any]) -> NDArray[np.bool_]:
        bits = self._bytes[np.where(validity < 0, 0, validity + (inside >> 3))] >> (inside & 7).astype(np.uint8)
        return np.asarray((validity >= 0) & ((bits & 1) == 0))

    def _slices(self, at: NDArray[Any], data: NDArray[Any]) -> Values:
        starts = (self._words[at] + data).tolist()
        at += 1
        stops = (self._words[at] + data).tolist()
        mapped = self._mapped
        if not self._is_text:
            return [mapped[start:stop] for start, stop in zip(starts, stops)], {}
        try:
            return [mapped[start:stop].decode() for start, stop in zip(starts, stops)], {}
        except UnicodeDecodeError:
            return self._decoded([mapped[start:stop] for start, stop in zip(starts, stops)])

    def _decoded(self, texts: list[bytes]) -> Values:
        values: list[Any] = [None] * len(texts)
        bad: dict[int, SampleError] = {}
        for place, text in enumerate(texts):
            try:
                values[place] = text.decode()
            except UnicodeDecodeError as error:
                bad[place] = SampleError(f"{self._name}: {error}", hint="correct the value or remove it")
        return values, bad
