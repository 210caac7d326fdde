"""How MosaicML's MDS stores values (``streaming/base/format/mds/encodings.py``): one encoding per column, by name.

Images in ``jpeg``, ``png``, ``jpegarray``, ``list[jpeg]`` and ``list[png]`` stay the bytes that are stored: decoding
them is a transform's business. Everything else is what MosaicML's own reader returns.
"""

from __future__ import annotations

import json
import math
import struct
from decimal import Decimal
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from iostack.corpus.values.common import Decode, as_stored, blobs, raw_image, scalar, text, unpickler

_INT = struct.Struct("<q")
_SCALARS = ("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float16", "float32", "float64")
_DTYPE_CODES = {
    8: "u1", 9: "i1", 16: "<u2", 17: "<i2", 18: "<f2", 32: "<u4", 33: "<i4", 34: "<f4", 64: "<u8", 65: "<i8", 66: "<f8"
}  # fmt: skip


_DECODERS: dict[str, Decode] = {
    "bytes": as_stored,
    "jpeg": as_stored,
    "png": as_stored,
    "str": text,
    "int": lambda data: _INT.unpack(data)[0],
    **{name: scalar(name) for name in _SCALARS},
    "str_int": lambda data: int(data.decode()),
    "str_float": lambda data: float(data.decode()),
    "str_decimal": lambda data: Decimal(data.decode()),
    "json": lambda data: json.loads(data.decode()),
    "pil": raw_image,
    "jpegarray": lambda data: blobs(data, 0),
    "jpeg_array": lambda data: blobs(data, 0),
    "list[jpeg]": lambda data: blobs(data, 4),  # the first four bytes are reserved
    "list[png]": lambda data: blobs(data, 4),
    "list[pil]": lambda data: [raw_image(each) for each in blobs(data, 4)],
}


def decoder(encoding: str, column: str, *, allow_pickle: frozenset[str], source: str) -> Decode:
    """Return the decoder of a column.

    Raises:
        ShardError: it is pickled, and ``allow_pickle`` does not name it.
        ValueError: there is no such encoding.
    """
    if encoding == "pkl":
        return unpickler(column, allowed=allow_pickle, source=source)
    if encoding in _DECODERS:
        return _DECODERS[encoding]
    name, _, arguments = encoding.partition(":")
    if name != "ndarray":
        raise ValueError(f"the unknown encoding {encoding[:60]!r}")
    dtype_name, *shapes = arguments.split(":") if arguments else [""]
    if dtype_name not in ("", *_SCALARS) or len(shapes) > 1:
        raise ValueError(f"the unknown encoding {encoding[:60]!r}")
    shape = tuple(int(size) for size in shapes[0].split(",")) if shapes else None
    if shape is not None and min(shape) < 1:
        raise ValueError(f"the impossible shape {encoding[:60]!r}")
    return partial(_array, dtype_name and np.dtype(dtype_name), shape)


def _array(dtype: Any, shape: tuple[int, ...] | None, data: bytes) -> NDArray[Any]:
    """Decode an array: u8 code of the dtype unless it is fixed, u8 (dimensions << 2 | log2 of the bytes of a size) and
    the sizes unless the shape is fixed, then the values."""
    at = 0
    if not dtype:
        dtype, at = np.dtype(_DTYPE_CODES[data[0]]), 1
    if shape is None:
        dimensions, width = data[at] >> 2, data[at] & 3
        shape = tuple(np.frombuffer(data, f"<u{1 << width}", dimensions, at + 1).tolist())
        at += 1 + (dimensions << width)
    if len(data) - at != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{len(data) - at:,} bytes of values for the shape {shape}")
    if at == len(data):
        return np.empty(shape, dtype)
    return np.frombuffer(data, dtype, offset=at).reshape(shape)
