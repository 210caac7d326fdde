"""What the encodings of several formats share: raw images, pickles, and how a value that cannot be decoded is told."""

from __future__ import annotations

import decimal
import struct
from collections.abc import Callable
from typing import Any

import numpy as np

from iostack.errors import MissingExtraError, ShardError

Decode = Callable[[bytes], Any]
"""Makes the value of one column from its bytes; raises one of ``BAD_VALUE`` where they are none of its encoding."""

BAD_VALUE = (
    ValueError,
    IndexError,
    KeyError,
    OverflowError,
    RecursionError,
    TypeError,
    struct.error,
    decimal.DecimalException,
)
"""What decoding foreign bytes may raise."""

_IMAGE_HEAD = struct.Struct("<3I")
_BITS_PER_PIXEL = {"1": 1, "L": 8, "P": 8, "LA": 16, "La": 16, "PA": 16, "I;16": 16, "I;16B": 16, "I;16L": 16} | {
    "RGB": 24, "YCbCr": 24, "LAB": 24, "HSV": 24, "RGBA": 32, "RGBa": 32, "RGBX": 32, "CMYK": 32, "I": 32, "F": 32
}  # fmt: skip


def as_stored(data: bytes) -> bytes:
    """Return the bytes."""
    return data


def scalar(dtype: str) -> Decode:
    """Return a decoder of one numpy scalar."""
    kind = np.dtype(dtype)

    def decode(data: bytes) -> Any:
        if len(data) != kind.itemsize:
            raise ValueError(f"{len(data):,} bytes instead of {kind.itemsize}")
        return np.frombuffer(data, kind)[0]

    return decode


def text(data: bytes) -> str:
    """Decode UTF-8."""
    return data.decode()


def raw_image(data: bytes) -> Any:
    """Return a PIL image from u32 width, height and length of the mode, then the mode and the pixels.

    Raises:
        MissingExtraError: Pillow is not installed.
        ValueError: the pixels do not fill the image; nothing is allocated before that is known.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtraError("raw PIL images need Pillow", hint="run: pip install pillow") from error
    width, height, mode_bytes = _IMAGE_HEAD.unpack_from(data)
    start = _IMAGE_HEAD.size + mode_bytes
    mode = data[_IMAGE_HEAD.size : start].decode()
    if mode not in _BITS_PER_PIXEL:
        raise ValueError(f"an image of the unknown mode {mode[:20]!r}")
    expected = -(-width * _BITS_PER_PIXEL[mode] // 8) * height
    if len(data) - start != expected:
        raise ValueError(f"{len(data) - start:,} bytes of pixels, {width} x {height} of {mode} take {expected:,}")
    return Image.frombytes(mode, (width, height), data[start:])


def blobs(data: bytes, at: int) -> list[bytes]:
    """Split u32 count and u32 sizes, which start at ``at``, and so many byte strings behind them."""
    (count,) = struct.unpack_from("<I", data, at)
    body = at + 4 + 4 * count
    if body > len(data):
        raise ValueError(f"{count:,} values in {len(data):,} bytes")
    ends = body + np.cumsum(np.frombuffer(data, "<u4", count, at + 4), dtype=np.int64)
    stops = ends.tolist()
    if (stops[-1] if stops else body) > len(data):
        raise ValueError("values that run beyond the end")
    return [data[start:stop] for start, stop in zip([body, *stops], stops, strict=False)]


def unpickler(column: str, *, allowed: frozenset[str], source: str) -> Decode:
    """Return a decoder of pickles for a column that the user trusts.

    Raises:
        ShardError: the user did not name it.
    """
    if column not in allowed:
        raise ShardError(
            f"{source}: the column {column!r} is pickled, which can run any code when it is read",
            hint=f"if you trust who wrote it, name it: -o allow_pickle={column}, or allow_pickle={column!r} in Python",
        )

    def decode(data: bytes) -> Any:
        import pickle

        try:
            return pickle.loads(data)
        except Exception as error:  # whatever the classes in it raise
            raise ValueError(f"cannot be unpickled: {type(error).__name__}: {error}") from error

    return decode
