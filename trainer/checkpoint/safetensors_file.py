"""Safetensors files, laid out as their final bytes: eight bytes of header length, a JSON header, the data.

https://huggingface.co/docs/safetensors: data begins right after the header, has no holes, and tensors follow each other
in the order of their offsets. ``safetensors.torch.save`` builds a second copy of all data; here the header is written
from sizes alone and each tensor's own memory follows. A piece that is not a whole tensor is named
``name@offset,offset``; our reader goes by the index and never looks at these names.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence

from iostack.errors import CheckpointError
from trainer.checkpoint.pieces import Piece, item_bytes
from trainer.checkpoint.store import Sink

BLOCK_BYTES = 1 << 20
FILE_BYTES = 2 << 30


def pack(pieces: Sequence[Piece], *, file_bytes: int = FILE_BYTES) -> list[list[Piece]]:
    """Divide pieces among files of about ``file_bytes`` at most, widest items first so that all lie aligned."""
    files: list[list[Piece]] = []
    room = 0
    for piece in sorted(pieces, key=lambda piece: (-item_bytes(piece.dtype), piece.key)):
        if not files or piece.num_bytes > room:
            files.append([])
            room = file_bytes
        files[-1].append(piece)
        room -= piece.num_bytes
    return files


def header(pieces: Sequence[Piece]) -> tuple[bytes, list[int]]:
    """Return the header for pieces in this order, and the byte of the file at which each of them begins."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    begins = []
    end = 0
    for piece in pieces:
        name = piece.name if piece.is_whole else f"{piece.name}@{','.join(map(str, piece.offsets))}"
        if name in entries:
            raise CheckpointError(f"two tensors would be stored as {name!r}", hint="rename one of them")
        begin, end = end, end + piece.num_bytes
        begins.append(begin)
        entries[name] = {"dtype": piece.dtype, "shape": piece.sizes, "data_offsets": [begin, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    return len(text).to_bytes(8, "little") + text, [start + begin for begin in begins]


class BlockSink:
    """Writes to a sink and keeps the crc32 of each block of ``BLOCK_BYTES``; the last block may be shorter."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._crc = 0
        self._filled = 0
        self._checksums: list[int] = []
        self.num_bytes = 0

    def write(self, data: memoryview) -> None:
        done = 0
        while done < len(data):
            part = data[done : done + BLOCK_BYTES - self._filled]
            self._crc = zlib.crc32(part, self._crc)
            self._sink.write(part)
            done += len(part)
            self._filled += len(part)
            if self._filled == BLOCK_BYTES:
                self._close_block()
        self.num_bytes += done

    def checksums(self) -> list[int]:
        """Return the checksums of all blocks, after the last write."""
        if self._filled:
            self._close_block()
        return self._checksums

    def _close_block(self) -> None:
        self._checksums.append(self._crc)
        self._crc = self._filled = 0
