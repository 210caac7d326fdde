"""The messages of an Arrow IPC file or stream, found without trusting one byte of them.

A stream is schema, dictionaries and record batches, each framed as ``FFFFFFFF, i32 length, flatbuffer, body``, and an end
mark of ``FFFFFFFF 00000000``. A file is ``ARROW1\\0\\0``, a stream, and a footer that ends in ``ARROW1``. Both are walked
from the front, so that their batches can be mapped alike. Tables are those of Message.fbs and Schema.fbs of the Arrow
format, version 5; pyarrow does not give the fields that are needed here before it has decompressed a batch.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from iostack.corpus.arrow_types import plain_type
from iostack.corpus.mapping import Mapped
from iostack.errors import ShardError

_MAGIC = b"ARROW1"
_FILE_START = 8
_CONTINUATION = b"\xff\xff\xff\xff"
_SCHEMA, _DICTIONARY, _BATCH = 1, 2, 3
_ROWS_LIMIT = 1 << 40
_BUFFERS_LIMIT = 1 << 20
_METADATA_LIMIT_BYTES = 64 << 20


@dataclass(frozen=True)
class Message:
    """One framed message. ``is_compressed`` and ``unpacked_bytes`` are of its body, ``num_rows`` of a record batch."""

    kind: int
    offset: int
    end: int
    num_rows: int = 0
    is_compressed: bool = False
    unpacked_bytes: int = 0

    @property
    def is_batch(self) -> bool:
        """Whether it is a record batch."""
        return self.kind == _BATCH


def start_of(mapped: Mapped) -> int:
    """Return where the stream begins: after the magic bytes of a file."""
    return _FILE_START if mapped[:6] == _MAGIC else 0


def messages(mapped: Mapped, *, name: str) -> Iterator[Message]:
    """Yield the messages from the schema on; ``name`` names the shard in errors.

    Raises:
        ShardError: truncated, damaged, or of a version before 0.15.
    """
    start = start_of(mapped)
    if start and mapped[-6:] != _MAGIC:
        raise damaged(name, "the end is missing: it was cut short")
    offset, is_first = start, True
    while True:
        message = _message_at(mapped, offset, name)
        if message is None:
            return
        if is_first != (message.kind == _SCHEMA):
            raise damaged(name, f"a message of kind {message.kind} at byte {offset:,}")
        yield message
        offset, is_first = message.end, False


def _message_at(mapped: Mapped, offset: int, name: str) -> Message | None:
    frame = mapped[offset : offset + 8]
    if len(frame) < 8:
        raise damaged(name, "the end mark is missing: it was cut short")
    if frame[:4] != _CONTINUATION:
        raise damaged(name, f"no message begins at byte {offset:,}", "Arrow before 0.15 wrote another framing")
    (length,) = struct.unpack_from("<i", frame, 4)
    if length == 0:
        return None
    if not 0 < length <= min(_METADATA_LIMIT_BYTES, len(mapped) - offset - 8):
        raise damaged(name, f"a header of {length:,} bytes at byte {offset:,}")
    body = offset + 8 + length
    try:
        return _parse(mapped, offset, body, mapped[offset + 8 : body])
    except (struct.error, ValueError) as error:
        raise damaged(name, f"the header at byte {offset:,}: {error}") from error


def _parse(mapped: Mapped, offset: int, body: int, metadata: bytes) -> Message:
    message = _Table.root(metadata)
    kind, body_bytes = message.number(1, "<B"), message.number(3, "<q")
    if not 0 <= body_bytes <= len(mapped) - body:
        raise ValueError(f"a body of {body_bytes:,} bytes")
    end = body + body_bytes
    if kind == _SCHEMA:
        return Message(kind, offset, end)
    header = message.table(2)
    batch = header.table(1) if kind == _DICTIONARY else header
    if kind not in (_DICTIONARY, _BATCH):
        raise ValueError(f"a message of kind {kind}")
    num_rows = batch.number(0, "<q")
    if not 0 <= num_rows <= _ROWS_LIMIT:
        raise ValueError(f"{num_rows:,} rows")
    if not batch.has(3):
        return Message(kind, offset, end, num_rows)
    return Message(kind, offset, end, num_rows, True, _unpacked_bytes(mapped, body, end, batch))


def _unpacked_bytes(mapped: Mapped, body: int, end: int, batch: _Table) -> int:
    """Return what the buffers of a compressed body say that they take; each begins with its size, -1 if it is plain."""
    total = 0
    for start, size in batch.pairs(2):
        at = body + start
        if not 0 <= size <= end - at or start < 0:
            raise ValueError(f"a buffer of {size:,} bytes at {start:,}")
        if size >= 8:
            (unpacked,) = struct.unpack("<q", mapped[at : at + 8])
            if unpacked < -1:
                raise ValueError(f"a buffer of {unpacked:,} bytes")
            total += size if unpacked == -1 else unpacked
    return total


class _Table:
    """A flatbuffer table: reads that leave the buffer are ``struct.error`` or ``ValueError``."""

    def __init__(self, data: bytes, at: int) -> None:
        self._data = data
        self._at = at
        self._fields = at - self._read("<i", at)
        self._fields_bytes = self._read("<H", self._fields)

    @classmethod
    def root(cls, data: bytes) -> _Table:
        """Return the table that a buffer begins with."""
        return cls(data, struct.unpack_from("<I", data)[0])

    def has(self, field: int) -> bool:
        """Return whether a field is there."""
        return self._place(field) != 0

    def number(self, field: int, code: str) -> int:
        """Return a number; 0 if it is not there."""
        return self._read(code, self._at + place) if (place := self._place(field)) else 0

    def table(self, field: int) -> _Table:
        """Return a table below this one."""
        at = self._target(field)
        return _Table(self._data, at)

    def pairs(self, field: int) -> Iterator[tuple[int, int]]:
        """Yield a vector of structs of two int64."""
        at = self._target(field)
        count = self._read("<I", at)
        if count > _BUFFERS_LIMIT:
            raise ValueError(f"{count:,} buffers")
        for number in range(count):
            place = at + 4 + 16 * number
            yield self._read("<q", place), self._read("<q", place + 8)

    def _target(self, field: int) -> int:
        if not (place := self._place(field)):
            raise ValueError(f"field {field} is missing")
        return self._at + place + self._read("<I", self._at + place)

    def _place(self, field: int) -> int:
        at = 4 + 2 * field
        return self._read("<H", self._fields + at) if at + 2 <= self._fields_bytes else 0

    def _read(self, code: str, at: int) -> int:
        if at < 0:
            raise ValueError(f"a place at {at}")
        value: int = struct.unpack_from(code, self._data, at)[0]
        return value


def read_schema(mapped: Mapped, *, name: str) -> Any:
    """Return the ``pyarrow.Schema``.

    Raises:
        ShardError: there is none, or two columns have one name.
    """
    import pyarrow as pa

    first = next(messages(mapped, name=name), None)
    if first is None:
        raise damaged(name, "there is no schema")
    try:
        schema = pa.ipc.read_schema(pa.py_buffer(mapped)[first.offset : first.end])
        names = [str(column) for column in schema.names]
        for field in schema:
            plain_type(field.type)  # it looks at every name inside, and what is no UTF-8 raises only then
    except (pa.ArrowException, ValueError, OSError, MemoryError, TypeError, KeyError) as error:
        raise damaged(name, f"the schema: {error}") from error
    refuse_duplicates(names, name=name)
    return schema


def refuse_duplicates(columns: list[str], *, name: str) -> None:
    """Raise ``ShardError`` if two columns have one name: a sample could hold only one of them."""
    if len(set(columns)) < len(columns):
        twice = next(column for column in columns if columns.count(column) > 1)
        raise ShardError(
            f"{name}: two columns are named {twice!r}", hint="rename one of them and write the shard again"
        )


def damaged(name: str, reason: str, hint: str = "copy or write the shard again") -> ShardError:
    """Return the error for a table that cannot be read."""
    reason = " ".join(reason.split())[:300]
    return ShardError(f"{name}: the table is damaged: {reason}", hint=hint)
