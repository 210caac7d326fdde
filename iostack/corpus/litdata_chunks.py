"""Where the items of a litData chunk lie, in each of its four layouts, little endian (``litdata/streaming/writer.py``).

plain     u32 items N, u32[N + 1] where each begins and the end, items
sample    the same, each item a zstd frame of its own
batch     "LDFZ01\\0\\0", u16 version 1, u16 flags, u32 N, u32 items per frame, u32 frames F, u32[N + 1] as above in
          the decompressed items; F times u32 first item, u32 items, u64 offset, u32 bytes, u32 decompressed bytes;
          zstd frames (``framed_zstd.py``)
arrow     plain with items that are empty or say the same, then an Arrow IPC file or stream of the rows, its u32
          size, "LDARW01\\0" (``item_loader.py``)
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

from iostack.corpus.mapping import Mapped
from iostack.corpus.row_index import RowIndex
from iostack.errors import ShardError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_FRAMED = b"LDFZ01\0\0"
_FRAMED_HEAD = struct.Struct("<8sHHIII")
_FRAME = struct.Struct("<IIQII")
_ARROW = b"LDARW01\0"
_RATIO_LIMIT = 1000
_UNQUESTIONED_BYTES = 16 << 20


def is_framed(data: Mapped) -> bool:
    """Return whether a chunk has the layout "batch"."""
    return data[: len(_FRAMED)] == _FRAMED


def offsets_of(data: Mapped, count: int, name: str) -> NDArray[np.uint32]:
    """Return where the ``count`` items of a plain chunk begin, and the end.

    Raises:
        ShardError: it holds other than ``count``, or they lie outside of it or not in order.
    """
    import numpy as np

    first = 4 * (count + 2)
    if len(data) < first or int.from_bytes(data[:4], "little") != count:
        raise damaged(name, f"it does not hold the {count:,} items that index.json says")
    offsets = np.frombuffer(data, "<u4", count + 1, 4)
    if offsets[0] < first or offsets[-1] > len(data) or (offsets[1:] < offsets[:-1]).any():
        raise damaged(name, "items that lie outside of it or not in order")
    return offsets


def unpack_frames(data: Mapped, count: int, name: str) -> RowIndex:
    """Decompress the items of a chunk of layout "batch": arrays ``offset`` and ``items``.

    Raises:
        ShardError: damaged, or larger than zstd would make it.
    """
    import numpy as np
    import pyarrow as pa

    if len(data) < _FRAMED_HEAD.size:
        raise damaged(name, "it is cut short")
    _, version, _, num_items, _, num_frames = _FRAMED_HEAD.unpack_from(data)
    table = _FRAMED_HEAD.size + 4 * (num_items + 1)
    if version != 1 or num_items != count or table + _FRAME.size * num_frames > len(data):
        raise damaged(name, f"frames of version {version} with {num_items:,} items, index.json says {count:,}")
    offsets = np.frombuffer(data, "<u4", count + 1, _FRAMED_HEAD.size).astype(np.int64)
    if offsets[0] != 0 or (offsets[1:] < offsets[:-1]).any():
        raise damaged(name, "items that are not in order")
    if (total := int(offsets[-1])) > max(_UNQUESTIONED_BYTES, _RATIO_LIMIT * len(data)):
        raise damaged(name, f"{total:,} bytes of items in {len(data):,}: a decompression bomb")
    items, at, next_item, codec = np.empty(total, np.uint8), 0, 0, pa.Codec("zstd")
    for number in range(num_frames):
        first, num_here, start, size, unpacked = _FRAME.unpack_from(data, table + _FRAME.size * number)
        fits = first == next_item and first + num_here <= count and start + size <= len(data)
        if not fits or unpacked != offsets[first + num_here] - offsets[first]:
            raise damaged(name, f"frame {number:,} does not fit its items")
        try:
            frame = codec.decompress(data[start : start + size], decompressed_size=unpacked)
        except (OSError, ValueError) as error:
            raise damaged(name, f"frame {number:,}: {error}") from error
        if len(frame) != unpacked:
            raise damaged(name, f"frame {number:,} is of another size")
        items[at : at + unpacked] = np.frombuffer(frame, np.uint8)
        at, next_item = at + unpacked, first + num_here
    if next_item != count:
        raise damaged(name, f"{count - next_item:,} items are in no frame")
    return RowIndex({"offset": offsets, "items": items}, {})


def unpack_item(data: bytes) -> bytes:
    """Decompress one item of the layout "sample".

    Raises:
        ValueError: damaged, or larger than zstd would make it.
    """
    import zstandard

    try:
        size = zstandard.frame_content_size(data)
        if size > max(_UNQUESTIONED_BYTES, _RATIO_LIMIT * len(data)):
            raise ValueError(f"{len(data):,} bytes claim to hold {size:,}: a decompression bomb")
        return zstandard.ZstdDecompressor().decompress(data, max_output_size=_UNQUESTIONED_BYTES)
    except zstandard.ZstdError as error:
        raise ValueError(f"the zstd frame is damaged: {error}") from error


def arrow_rows(data: Mapped, end_of_items: int, count: int, name: str) -> Any | None:
    """Return the Arrow table behind the items of a chunk, or None if there is none; it is checked in full.

    Raises:
        ShardError: damaged.
    """
    if data[-len(_ARROW) :] != _ARROW:
        return None
    import pyarrow as pa

    size = int.from_bytes(data[-12:-8], "little")
    start = len(data) - 12 - size
    if start != end_of_items:
        raise damaged(name, f"an Arrow table of {size:,} bytes that is not behind the items")
    try:
        source = pa.py_buffer(data).slice(start, size)
        is_file = data[start : start + 6] == b"ARROW1"
        table = (pa.ipc.open_file if is_file else pa.ipc.open_stream)(source).read_all()
        table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError, TypeError) as error:
        raise damaged(name, f"the Arrow table cannot be read: {error}") from error
    if table.num_rows != count:
        raise damaged(name, f"{table.num_rows:,} rows in its Arrow table, index.json says {count:,}")
    return table


def damaged(name: str, reason: str) -> ShardError:
    """Return the error of a damaged chunk."""
    return ShardError(f"{name}: {reason}", hint="copy or write the chunk again")
