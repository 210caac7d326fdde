"""Digests of samples: the same for values that are equal, whichever reader gave them.

Formats give one value back in several shapes: a list as an array, 1 as 1.0, a column that is missing as None. Such
values have one digest; all others differ.
"""

from __future__ import annotations

import decimal
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from iostack.corpus.contracts import Sample

_EXACT_IN_FLOAT = float(1 << 53)
_JOINED_BYTES = 4096
_KEPT_NAMES = 10_000
_EXACTLY = decimal.Context(prec=decimal.MAX_PREC, Emin=decimal.MIN_EMIN, Emax=decimal.MAX_EMAX, traps=[])
_name = operator.itemgetter(0)


class SamplesDigest:
    """Of a sequence of samples, in their order; also counts them.

    Every sample of a conversion goes through it twice: what is most often there is told by its exact type, and small
    pieces are hashed together.
    """

    def __init__(self) -> None:
        self._hasher = xxhash.xxh3_128()
        self._pieces: list[bytes] = []
        self._names: dict[str, bytes] = {}
        self.num_samples = 0

    def add(self, sample: Sample) -> None:
        """Append one sample."""
        self._add(sample)
        self._flush()
        self.num_samples += 1

    def value(self) -> str:
        """Return the digest of all samples so far."""
        return str(self._hasher.hexdigest())

    def _add(self, value: Any) -> None:
        kind = type(value)
        if kind is str:
            self._put(b"s", value.encode("utf-8", "surrogatepass"))
        elif kind is int:
            self._put(b"i", b"%d" % value)
        elif kind is bytes:
            self._put(b"b", value)
        elif kind is float:
            self._add_float(value)
        elif kind is dict:
            self._add_mapping(value)
        elif kind is list:
            self._add_list(value)
        else:
            self._add_other(value)

    def _add_other(self, value: Any) -> None:
        if isinstance(value, np.ndarray):
            self._add_array(value)
        elif isinstance(value, str):
            self._add(str(value))
        elif isinstance(value, bytes | bytearray | memoryview):
            self._put(b"b", value)
        elif isinstance(value, bool | np.bool_):
            self._put(b"t" if value else b"f", b"")
        elif isinstance(value, int | np.integer):
            self._add(int(value))
        elif isinstance(value, float | np.floating):
            self._add_float(float(value))
        elif isinstance(value, Mapping):
            self._add_mapping(value)
        elif isinstance(value, Sequence):
            self._add_list(value)
        elif isinstance(value, decimal.Decimal):  # a column has one scale: 1.5 may be read back as 1.50
            self._put(b"o", f"Decimal:{_EXACTLY.normalize(value)}".encode())
        else:
            self._put(b"o", f"{type(value).__name__}:{value}".encode())

    def _add_float(self, number: float) -> None:
        if number.is_integer():
            self._put(b"i", b"%d" % int(number))
        else:
            self._put(b"d", repr(number).encode())

    def _add_mapping(self, values: Mapping[Any, Any]) -> None:
        kept = [(str(name), value) for name, value in values.items() if value is not None]
        kept.sort(key=_name)
        self._put(b"m", b"%d" % len(kept))
        for name, value in kept:
            self._put(b"s", self._names.get(name) or self._encoded(name))
            self._add(value)

    def _encoded(self, name: str) -> bytes:
        encoded = name.encode("utf-8", "surrogatepass")
        if len(self._names) < _KEPT_NAMES:
            self._names[name] = encoded
        return encoded

    def _add_list(self, values: Sequence[Any]) -> None:
        if all(type(value) in (int, float) for value in values):
            try:
                self._add_array(np.array(values, np.int64 if all(type(value) is int for value in values) else float))
                return
            except OverflowError:  # beyond 64 bits
                pass
        self._put(b"l", b"%d" % len(values))
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
        if type(data) is not bytes:
            view = memoryview(data)
            data = view.cast("B") if view.nbytes else b""
        self._pieces.append(kind + len(data).to_bytes(8, "little"))
        if len(data) < _JOINED_BYTES:
            self._pieces.append(bytes(data))
        else:
            self._flush()
            self._hasher.update(data)

    def _flush(self) -> None:
        self._hasher.update(b"".join(self._pieces))
        self._pieces.clear()
