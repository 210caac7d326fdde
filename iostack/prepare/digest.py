"""Digests of samples: the same for values that are equal, whichever reader gave them.

Formats give one value back in several shapes: a list as an array, 1 as 1.0, a column that is missing as None. Such
values have one digest; all others differ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from iostack.corpus.contracts import Sample

_EXACT_IN_FLOAT = float(1 << 53)


class SamplesDigest:
    """Of a sequence of samples, in their order; also counts them."""

    def __init__(self) -> None:
        self._hasher = xxhash.xxh3_128()
        self.num_samples = 0

    def add(self, sample: Sample) -> None:
        """Append one sample."""
        self._add(sample)
        self.num_samples += 1

    def value(self) -> str:
        """Return the digest of all samples so far."""
        return str(self._hasher.hexdigest())

    def _add(self, value: Any) -> None:
        if isinstance(value, str):
            self._put(b"s", value.encode("utf-8", "surrogatepass"))
        elif isinstance(value, bytes | bytearray | memoryview):
            self._put(b"b", value)
        elif isinstance(value, np.ndarray):
            self._add_array(value)
        elif isinstance(value, bool | np.bool_):
            self._put(b"t" if value else b"f", b"")
        elif isinstance(value, int | np.integer):
            self._put(b"i", str(int(value)).encode())
        elif isinstance(value, float | np.floating):
            number = float(value)
            self._put(b"i", str(int(number)).encode()) if number.is_integer() else self._put(
                b"d", repr(number).encode()
            )
        elif isinstance(value, Mapping):
            kept = sorted((str(name), each) for name, each in value.items() if each is not None)
            self._put(b"m", str(len(kept)).encode())
            for name, each in kept:
                self._add(name)
                self._add(each)
        elif isinstance(value, Sequence):
            self._add_list(value)
        else:
            self._put(b"o", f"{type(value).__name__}:{value}".encode())

    def _add_list(self, values: Sequence[Any]) -> None:
        if all(type(value) in (int, float) for value in values):
            try:
                self._add_array(np.array(values, np.int64 if all(type(value) is int for value in values) else float))
                return
            except OverflowError:  # beyond 64 bits
                pass
        self._put(b"l", str(len(values)).encode())
        for value in values:
            self._add(value)

    def _add_array(self, array: NDArray[Any]) -> None:
        if array.ndim == 0:
            self._add(array.item())
        elif array.ndim > 1 or array.dtype.kind not in "iuf":
            self._add_list(list(array) if array.ndim > 1 else array.tolist())
        elif array.dtype.kind == "u" and array.dtype.itemsize == 8 and len(array) and int(array.max()) >= 1 << 63:
            self._add_list(array.tolist())
        elif array.dtype.kind in "iu" or bool(np.all((np.trunc(array) == array) & (np.abs(array) <= _EXACT_IN_FLOAT))):
            self._put(b"a", np.ascontiguousarray(array, "<i8").data)
        else:
            self._put(b"x", np.ascontiguousarray(array, "<f8").data)

    def _put(self, kind: bytes, data: Any) -> None:
        view = memoryview(data).cast("B") if memoryview(data).nbytes else b""
        self._hasher.update(kind + len(view).to_bytes(8, "little"))
        self._hasher.update(view)
