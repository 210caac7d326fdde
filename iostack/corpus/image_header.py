"""The kind of an image from its first bytes, and of PNG and WebP the size, before a decoder takes memory for it.

The size of a JPEG is told by libjpeg-turbo, which takes no memory for it either. Sources: PNG (ISO/IEC 15948, section 11.2.2), WebP
(RFC 9649, section 2).
"""

from __future__ import annotations

import struct

from iostack.errors import SampleError

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8"


def is_jpeg(data: bytes) -> bool:
    """Return whether these bytes claim to be a JPEG."""
    return data.startswith(_JPEG)


def image_size(data: bytes) -> tuple[str, int, int]:
    """Return ("png" or "webp", height, width).

    Raises:
        SampleError: neither of the two, cut short, or without any pixel.
    """
    if data[:8] == _PNG:
        kind, size = "png", _png_size(data)
    elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        kind, size = "webp", _webp_size(data)
    else:
        raise SampleError(f"neither a JPEG, PNG nor WebP image: {len(data):,} bytes that begin with {data[:8].hex()}")
    if size is None or min(size) < 1:
        raise SampleError(f"a damaged {kind} image: its header is cut short or tells no size")
    return kind, *size


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
