"""The kind and size of an image from its first bytes, before a decoder takes memory for it.

Sources: JPEG (ITU-T T.81, annex B), PNG (ISO/IEC 15948, section 11.2.2), WebP (RFC 9649, section 2).
"""

from __future__ import annotations

import struct

from iostack.errors import SampleError

_PNG = b"\x89PNG\r\n\x1a\n"
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
"""Markers that begin a frame of a JPEG, and so tell its size."""
_ALONE = {0x01, *range(0xD0, 0xD9)}
"""Markers of a JPEG without a segment behind them."""
_MOST_MARKERS = 10_000


def image_size(data: bytes) -> tuple[str, int, int]:
    """Return ("jpeg", "png" or "webp", height, width); costs a few microseconds.

    Raises:
        SampleError: none of the three, cut short, or without any pixel.
    """
    if data[:2] == b"\xff\xd8":
        kind, size = "jpeg", _jpeg_size(data)
    elif data[:8] == _PNG:
        kind, size = "png", _png_size(data)
    elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        kind, size = "webp", _webp_size(data)
    else:
        raise SampleError(f"neither a JPEG, PNG nor WebP image: {len(data):,} bytes that begin with {data[:8].hex()}")
    if size is None or min(size) < 1:
        raise SampleError(f"a damaged {kind} image: its header is cut short or tells no size")
    return kind, *size


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    at = 2
    for _ in range(_MOST_MARKERS):
        at = data.find(b"\xff", at)
        if at < 0 or at + 9 > len(data):
            break
        marker = data[at + 1]
        if marker in _FRAMES:
            height, width = struct.unpack_from(">HH", data, at + 5)
            return height, width
        if marker == 0xFF:  # a fill byte
            at += 1
        elif marker == 0x00 or marker in _ALONE:
            at += 2
        else:
            at += 2 + max(2, int.from_bytes(data[at + 2 : at + 4]))
    return None


def _png_size(data: bytes) -> tuple[int, int] | None:
    if len(data) < 24 or data[12:16] != b"IHDR":
        return None
    width, height = struct.unpack_from(">II", data, 16)
    return height, width


def _webp_size(data: bytes) -> tuple[int, int] | None:
    if len(data) < 30:
        return None
    if data[12:16] == b"VP8X":  # 24 bits each, minus one
        return int.from_bytes(data[27:30], "little") + 1, int.from_bytes(data[24:27], "little") + 1
    if data[12:16] == b"VP8L" and data[20] == 0x2F:  # 14 bits each, minus one
        bits = int.from_bytes(data[21:25], "little")
        return (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1
    if data[12:16] == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", data, 26)
        return height & 0x3FFF, width & 0x3FFF
    return None
