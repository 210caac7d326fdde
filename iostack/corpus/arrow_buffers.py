"""Flat columns of a mapped Arrow file, gathered by numpy from where their buffers lie."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from iostack.corpus.arrow_messages import damaged
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

_VALUE_LIMIT_BYTES = 256 << 20
_NOWHERE = -1


def place_buffers(mapped: Mapped, column: Any, layout: str, *, name: str) -> list[int]:
    """Return where a column of a batch lies in the file: validity (-1: no nulls), offsets or numbers, data, data bytes.

    Raises:
        ShardError: the buffers are too small for their rows, or do not lie in the file as Arrow aligns them.
    """
    import pyarrow as pa

    column.validate()  # of buffers: that they are large enough; what offsets say is checked when they are read
    if len(column) == 0:
        return [_NOWHERE, 0, 0, 0]
    whole = pa.py_buffer(mapped)
    buffers = column.buffers()
    starts = [_NOWHERE if buffer is None or not buffer.size else buffer.address - whole.address for buffer in buffers]
    ends = [0 if buffer is None else start + buffer.size for start, buffer in zip(starts, buffers, strict=True)]
    width = int((_NUMBERS | _TEXTS)[layout][2])
    if column.offset or starts[1] < 0 or starts[1] % width or max(ends) > len(mapped) or min(starts) < _NOWHERE:
        raise damaged(name, f"a column of {layout} does not lie in the file as it should")
    if layout in _NUMBERS:
        return [starts[0], starts[1], 0, 0]
    return [starts[0], starts[1], max(starts[2], 0), max(ends[2] - starts[2], 0) if starts[2] >= 0 else 0]


class FlatColumn:
    """One column of strings, bytes or numbers. ``places`` is int64[4 * batches], see ``place_buffers``."""

    def __init__(self, mapped: Mapped, layout: str, places: NDArray[Any], name: str) -> None:
        import numpy as np

        self._name = name
        self._mapped = mapped
        self._is_text = layout in ("string", "large_string")
        self._is_number = layout in _NUMBERS
        self._places = places.reshape(-1, 4)
        self._has_nulls = bool((self._places[:, 0] >= 0).any())
        dtype = np.dtype((_NUMBERS | _TEXTS)[layout])
        self._width = dtype.itemsize
        self._bytes = np.frombuffer(mapped, np.uint8)
        self._words = np.frombuffer(mapped, dtype, len(mapped) // dtype.itemsize)

    def values(self, batches: NDArray[Any], inside: NDArray[Any]) -> Values:
        """Return the value of each row, and the errors of bad ones by their place."""
        places = self._places[batches]
        at = places[:, 1] // self._width + inside
        values, bad = (self._words[at].tolist(), {}) if self._is_number else self._slices(at, places)
        if self._has_nulls:
            for place in self._nulls(places[:, 0], inside):
                values[place] = None
                bad.pop(place, None)
        return values, bad

    def _nulls(self, validity: NDArray[Any], inside: NDArray[Any]) -> list[int]:
        import numpy as np

        bits = self._bytes[np.where(validity < 0, 0, validity + (inside >> 3))] >> (inside & 7).astype(np.uint8)
        nulls: list[int] = np.flatnonzero((validity >= 0) & ((bits & 1) == 0)).tolist()
        return nulls

    def _slices(self, at: NDArray[Any], places: NDArray[Any]) -> Values:
        import numpy as np

        starts, stops = self._words[at].astype(np.int64), self._words[at + 1].astype(np.int64)
        wrong = (starts < 0) | (stops < starts) | (stops > places[:, 3]) | (stops - starts > _VALUE_LIMIT_BYTES)
        bad: dict[int, SampleError] = {}
        for place in np.flatnonzero(wrong).tolist():
            bad[place] = self._bad(f"a value from byte {starts[place]:,} to {stops[place]:,} of {places[place, 3]:,}")
            starts[place] = stops[place] = 0
        bounds = zip((starts + places[:, 2]).tolist(), (stops + places[:, 2]).tolist())
        mapped = self._mapped
        if not self._is_text:
            return [mapped[start:stop] for start, stop in bounds], bad
        values: list[Any] = []
        try:
            return [mapped[start:stop].decode() for start, stop in bounds], bad
        except UnicodeDecodeError:
            values = [None] * len(at)
        for place, (start, stop) in enumerate(zip((starts + places[:, 2]).tolist(), (stops + places[:, 2]).tolist())):
            try:
                values[place] = mapped[start:stop].decode()
            except UnicodeDecodeError as error:
                bad[place] = self._bad(str(error))
        return values, bad

    def _bad(self, reason: str) -> SampleError:
        return SampleError(f"{self._name}: {reason}", hint="correct the value or remove it")
