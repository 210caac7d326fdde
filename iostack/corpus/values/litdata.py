"""How litData stores values (``litdata/streaming/serializers.py``): one serializer per leaf, by name.

Images, video, audio and other media stay the bytes that are stored, tensors are numpy arrays of the same values, and
everything else is what litData's own reader returns.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from iostack.corpus.values.common import Decode, as_stored, blobs, raw_image, text, unpickler
from iostack.errors import ShardError

_MEDIA = ("jpeg", "image", "video", "audio", "nifti", "mesh", "pdf", "tifffile", "tiff", "file")
_INT, _FLOAT = struct.Struct("<q"), struct.Struct("<d")

# litdata/constants.py numbers the dtypes; those that are left out are no plain values (object) or unknown to numpy.
_NUMPY = dict(
    enumerate(("i1", "<i2", "<i4", "<i8", "u1", "<u2", "<u4", "<u8", "<f2", "<f4", "<f8", "<c8", "<c16", "?"))
)
_TORCH = dict(enumerate(("<f4", "<f4", "<f8", "<f8", "<c8", "<c8", "<c16", "<c16", "<f2", "<f2"))) | dict(
    enumerate(("u1", "i1", "<i2", "<i2", "<i4", "<i4", "<i8", "<i8", "?", "<u2"), start=11)
)


def flat_dtype(data_format: str) -> np.dtype[Any] | None:
    """Return the dtype of arrays of one dimension that are stored without a header; None for another serializer.

    Raises:
        ValueError: a dtype that is not read.
    """
    name, _, code = data_format.partition(":")
    known = {"no_header_numpy": _NUMPY, "no_header_tensor": _TORCH}.get(name)
    if known is None:
        return None
    if not code.isdecimal() or int(code) not in known:
        raise ValueError(f"values of the unknown dtype {data_format[:60]!r}")
    return np.dtype(known[int(code)])


def decoder(data_format: str, column: str, *, allow_pickle: frozenset[str], source: str) -> Decode:
    """Return the decoder of a leaf of ``column``.

    Raises:
        ShardError: it is pickled, and ``allow_pickle`` does not name the column.
        ValueError: a serializer that is not known.
    """
    if (dtype := flat_dtype(data_format)) is not None:
        return partial(_flat, dtype)
    name = data_format.partition(":")[0]
    if name == "pickle":
        return unpickler(column, allowed=allow_pickle, source=source)
    if name == "graph":
        raise ShardError(f"{source}: the column {column!r} holds graphs, whose parts are pickled: they are not read")
    if name not in _DECODERS:
        raise ValueError(f"the unknown serializer {data_format[:60]!r}")
    return _DECODERS[name]


def _flat(dtype: np.dtype[Any], data: bytes) -> NDArray[Any]:
    return np.frombuffer(data, dtype)


def _array(codes: Mapping[int, str], order: str, data: bytes) -> NDArray[Any]:
    """Decode u32 code of the dtype, u32 dimensions, u32 sizes, values; the numbers are in ``order``."""
    code, dimensions = struct.unpack_from(f"{order}II", data)
    dtype = np.dtype(codes[code])
    shape = struct.unpack_from(f"{order}{dimensions}I", data, 8) if 4 * dimensions <= len(data) else ()
    at = 8 + 4 * dimensions
    if len(data) - at != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{len(data) - at:,} bytes of values for the shape {shape}")
    return np.frombuffer(data[at:], dtype).reshape(shape)


def _nested(data: bytes) -> Any:
    """Decode lists and dicts: JSON text, or litData's tagged binary form of it."""
    if not data or data[0] > 0x20:
        return json.loads(data)
    nest = _Nest(data)
    return nest.value()


class _Nest:
    """A cursor over tagged values. Counts are checked against the bytes that are left before anything is made of them."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def value(self) -> Any:
        tag = self._take(1)[0]
        if tag not in _TAGS:
            raise ValueError(f"the unknown tag {tag}")
        return _TAGS[tag](self)

    def text(self) -> str:
        return self._take(self._count()).decode()

    def int64(self) -> int:
        return int(_INT.unpack(self._take(8))[0])

    def float64(self) -> float:
        return float(_FLOAT.unpack(self._take(8))[0])

    def truth(self) -> bool:
        return self._take(1) != b"\0"

    def parsed(self) -> Any:
        return json.loads(self._take(self._count()))

    def texts(self) -> list[str]:
        return [self.text() for _ in range(self._count(of_bytes=4))]

    def numbers(self, dtype: str) -> list[Any]:
        return list(np.frombuffer(self._take(8 * self._count(of_bytes=8)), dtype).tolist())

    def bools(self) -> list[bool]:
        return [byte != 0 for byte in self._take(self._count())]

    def mapping(self) -> dict[str, Any]:
        return {self.text(): self.value() for _ in range(self._count(of_bytes=5))}

    def records(self) -> list[dict[str, Any]]:
        count = self._count()
        keys = [self.text() for _ in range(self._count(of_bytes=4))]
        if not keys or count * len(keys) > len(self._data) - self._at:
            raise ValueError(f"{count:,} records in {len(self._data):,} bytes")
        return [{key: self._field() for key in keys} for _ in range(count)]

    def _field(self) -> Any:
        kind = self._take(1)[0]
        if kind not in _FIELDS:
            raise ValueError(f"the unknown tag {kind}")
        return _FIELDS[kind](self)

    def _count(self, of_bytes: int = 1) -> int:
        (count,) = struct.unpack("<I", self._take(4))
        if count * of_bytes > len(self._data) - self._at:
            raise ValueError(f"{count:,} values in {len(self._data):,} bytes")
        return int(count)

    def _take(self, size: int) -> bytes:
        at, self._at = self._at, self._at + size
        if self._at > len(self._data):
            raise ValueError("it is cut short")
        return self._data[at : self._at]


_TAGS: dict[int, Callable[[_Nest], Any]] = {
    0: _Nest.parsed,
    1: _Nest.texts,
    2: lambda nest: nest.numbers("<i8"),
    3: lambda nest: nest.numbers("<f8"),
    4: _Nest.bools,
    5: _Nest.mapping,
    6: _Nest.records,
    7: _Nest.text,
    8: _Nest.int64,
    9: _Nest.float64,
    10: _Nest.truth,
    11: lambda nest: None,
}
_FIELDS: dict[int, Callable[[_Nest], Any]] = {
    0x10: lambda nest: None,
    0x11: _Nest.text,
    0x12: _Nest.int64,
    0x13: _Nest.float64,
    0x14: _Nest.truth,
}

_DECODERS: dict[str, Decode] = {
    "str": text,
    "text": text,
    "bool": lambda data: data[0] != 0,
    "int": lambda data: _INT.unpack(data)[0],
    "float": lambda data: _FLOAT.unpack(data)[0],
    "bytes": as_stored,
    **dict.fromkeys(_MEDIA, as_stored),
    "jpeg_array": lambda data: blobs(data, 0),
    "pil": raw_image,
    "numpy": partial(_array, _NUMPY, "<"),
    "tensor": partial(_array, _TORCH, ">"),
    "json": _nested,
}
