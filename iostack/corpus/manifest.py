"""The manifest: the table of a corpus's shards, one row each, as an Arrow IPC file that is mapped, never parsed.

Nothing here loops over shards when a manifest is opened, so one of a million shards opens in milliseconds. A manifest
comes from beside the data and is trusted no more than the data: text is bounds-checked where it is read, counts where
they are summed, and paths cannot leave the corpus. One that was made from a listing stays in memory, and needs no pyarrow.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from iostack.corpus.contracts import COMPRESSIONS, Counts, ObjectInfo, Shard
from iostack.corpus.paths import check_path
from iostack.errors import CorpusError
from iostack.lazy import lazy

SIDECAR = ".iostack/manifest.arrow"
"""Path of the manifest below the URI of its corpus."""

_VERSION = "1"
_UNKNOWN = -1
_NUMBERS = ("bytes", "samples", "tokens")
_TEXTS = ("path", "etag", "compression", "companions")


class Manifest:
    """The shards of one corpus, column by column; a count of -1 is unknown. Immutable and thread-safe.

    ``bytes``, ``samples`` and ``tokens`` are read-only int64 views of the mapped file.
    """

    def __init__(self, table: Table, *, source: str) -> None:
        self._table = table
        self._source = source
        metadata = table.metadata
        try:
            self.format: str = metadata[b"format"].decode()
            self.fingerprint: str = metadata[b"fingerprint"].decode()
            self.vocab_size: int | None = _vocab_size(metadata.get(b"vocab_size"))
        except (KeyError, ValueError) as error:
            raise self._damaged(str(error)) from error
        self.bytes: NDArray[np.int64] = table.numbers["bytes"]
        self.num_shards: int = len(self.bytes)

    def with_vocab_size(self, vocab_size: int | None) -> Manifest:
        """Return the same manifest, which says that all token ids are below ``vocab_size``; the fingerprint stays."""
        if vocab_size is None:
            return self
        metadata = {**self._table.metadata, b"vocab_size": str(vocab_size).encode()}
        return Manifest(self._table._replace(metadata=metadata), source=self._source)

    @lazy
    def samples(self) -> NDArray[np.int64] | None:
        """Samples of each shard, or None if that of any shard is unknown."""
        return self._known(self._table.numbers["samples"])

    @lazy
    def tokens(self) -> NDArray[np.int64] | None:
        """Tokens of each shard, or None if that of any shard is unknown."""
        return self._known(self._table.numbers["tokens"])

    def _known(self, column: NDArray[np.int64]) -> NDArray[np.int64] | None:
        if not len(column):
            return column
        low, high = int(column.min()), int(column.max())
        if low < _UNKNOWN or high > 2**62 // len(column):
            raise self._damaged(f"it counts {low if low < _UNKNOWN else high} in one shard")
        return None if low == _UNKNOWN else column

    def _damaged(self, reason: str) -> CorpusError:
        return _damaged(self._source, reason)

    @property
    def total_samples(self) -> int | None:
        """Samples of all shards, or None if unknown."""
        return None if self.samples is None else int(self.samples.sum())

    @property
    def total_tokens(self) -> int | None:
        """Tokens of all shards, or None if unknown."""
        return None if self.tokens is None else int(self.tokens.sum())

    def path(self, shard: int) -> str:
        """Return the path of a shard, relative to the corpus.

        Raises:
            ShardError: it would lead out of the corpus.
        """
        return check_path(self._text("path", shard), source=self._source)

    def etag(self, shard: int) -> str:
        """Return the etag of a shard when it was indexed; may be empty."""
        return self._text("etag", shard)

    def shard(self, shard: int) -> Shard:
        """Return one row as a ``Shard``."""
        try:
            companions = json.loads(self._text("companions", shard) or "[]")
            others = tuple(
                ObjectInfo(check_path(str(path), source=self._source), int(size), str(etag))
                for path, size, etag in companions
            )
        except (ValueError, TypeError, OverflowError, RecursionError) as error:
            raise self._damaged(f"shard {shard}: {error}") from error
        if (compression := self._text("compression", shard)) not in ("", *COMPRESSIONS.values()):
            raise self._damaged(f"shard {shard} is compressed as {compression[:40]!r}")
        return Shard(
            ObjectInfo(self.path(shard), int(self.bytes[shard]), self.etag(shard)),
            others,
            compression,
        )

    def counts(self, shard: int) -> Counts | None:
        """Return the counts of one shard, or None if they are unknown."""
        samples, tokens = (int(self._table.numbers[name][shard]) for name in ("samples", "tokens"))
        return None if samples == _UNKNOWN else Counts(samples, None if tokens == _UNKNOWN else tokens)

    def _text(self, column: str, shard: int) -> str:
        try:
            return self._table.texts[column][shard]
        except ValueError as error:
            raise self._damaged(f"{column} of shard {shard}: {error}") from error

    def to_bytes(self) -> bytes:
        """Return the Arrow IPC file."""
        import pyarrow as pa

        columns = {name: _numbers_column(column) for name, column in self._table.numbers.items()}
        columns |= {name: _texts_column(texts) for name, texts in self._table.texts.items()}
        batch = pa.record_batch(columns).replace_schema_metadata(dict(self._table.metadata))
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, batch.schema) as writer:
            writer.write_batch(batch)
        return sink.getvalue().to_pybytes()  # type: ignore[no-any-return]


def _damaged(source: str, reason: object) -> CorpusError:
    return CorpusError(f"{source}: the manifest is damaged: {reason}", hint="write it anew: iostack index URI")


def _vocab_size(text: bytes | None) -> int | None:
    if text is None:
        return None
    if not text.isdigit() or not 0 < int(text[:12]) < 1 << 31:
        raise ValueError(f"it names a vocabulary of {text[:20]!r}")
    return int(text[:12])


class Texts:
    """A column of strings as Arrow lays it out, which checks its offsets when it is read: Arrow itself trusts them."""

    def __init__(self, ends: NDArray[np.int64], data: memoryview) -> None:
        self.ends = ends
        """int64[S + 1]: where each text starts, and the end."""
        self.data = data

    def __getitem__(self, row: int) -> str:
        start, stop = int(self.ends[row]), int(self.ends[row + 1])
        if not 0 <= start <= stop <= len(self.data):
            raise ValueError(f"text from {start} to {stop} of {len(self.data)} bytes")
        return bytes(self.data[start:stop]).decode()


class Table(NamedTuple):
    """The columns of a manifest, in memory or in the mapped file; ``numbers`` are int64[S], by name."""

    numbers: Mapping[str, NDArray[np.int64]]
    texts: Mapping[str, Texts]
    metadata: Mapping[bytes, bytes]


def _texts_of(texts: Sequence[str]) -> Texts:
    encoded = [text.encode() for text in texts]
    ends = np.zeros(len(encoded) + 1, np.int64)
    np.cumsum(np.fromiter(map(len, encoded), np.int64, len(encoded)), out=ends[1:])
    return Texts(ends, memoryview(b"".join(encoded)))


def _table_of(batch: Any) -> Table:
    """Return the columns of an Arrow record batch, not copied."""
    metadata = batch.schema.metadata or {}
    if metadata.get(b"iostack.manifest") != _VERSION.encode():
        raise ValueError("it is not a manifest of this version")
    return Table(
        {name: _numbers(batch.column(name)) for name in _NUMBERS},
        {name: _texts(batch.column(name)) for name in _TEXTS},
        metadata,
    )


# pyarrow's own conversions to and from numpy import pandas where it is installed: 370 ms.
def _numbers(column: Any) -> NDArray[np.int64]:
    if str(column.type) != "int64" or column.null_count or column.offset:
        raise ValueError(f"a column of numbers is {column.type} with {column.null_count} nulls")
    data = column.buffers()[1]
    return np.frombuffer(data, np.int64, len(column)) if len(column) else np.zeros(0, np.int64)


def _texts(column: Any) -> Texts:
    if str(column.type) != "large_string" or column.null_count or column.offset:
        raise ValueError(f"a column of text is {column.type} with {column.null_count} nulls")
    _, offsets, data = column.buffers()
    ends = np.frombuffer(offsets, np.int64, len(column) + 1)
    return Texts(ends, memoryview(data) if data is not None else memoryview(b""))


def _numbers_column(values: NDArray[np.int64]) -> Any:
    import pyarrow as pa

    return pa.Array.from_buffers(pa.int64(), len(values), [None, pa.py_buffer(values)])


def _texts_column(texts: Texts) -> Any:
    import pyarrow as pa

    buffers = [None, pa.py_buffer(texts.ends), pa.py_buffer(texts.data)]
    return pa.Array.from_buffers(pa.large_string(), len(texts.ends) - 1, buffers)


def manifest_of(format: str, shards: Sequence[Shard], counts: Sequence[Counts | None]) -> Manifest:
    """Build the manifest of ``shards`` in their order; a count of None is unknown."""
    return manifest_from_columns(
        format=format,
        paths=[shard.object.path for shard in shards],
        bytes=[shard.object.bytes for shard in shards],
        samples=[_UNKNOWN if known is None else known.samples for known in counts],
        tokens=[_UNKNOWN if known is None or known.tokens is None else known.tokens for known in counts],
        etags=[shard.object.etag for shard in shards],
        compressions=[shard.compression for shard in shards],
        companions=[
            json.dumps([[other.path, other.bytes, other.etag] for other in shard.companions])
            if shard.companions
            else ""
            for shard in shards
        ],
    )


def manifest_from_columns(
    *,
    format: str,
    paths: Sequence[str],
    bytes: ArrayLike,
    samples: ArrayLike,
    tokens: ArrayLike | None = None,
    etags: Sequence[str] | None = None,
    compressions: Sequence[str] | None = None,
    companions: Sequence[str] | None = None,
) -> Manifest:
    """Build a manifest from columns of equal length; ``companions`` holds JSON: ``[[path, bytes, etag], ...]``."""
    empty = [""] * len(paths)
    numbers = [
        np.full(len(paths), _UNKNOWN, np.int64) if column is None else np.array(column, np.int64)
        for column in (bytes, samples, tokens)
    ]
    for column in numbers:
        column.flags.writeable = False
    texts = (paths, etags or empty, compressions or empty, companions or empty)
    metadata = {"iostack.manifest": _VERSION, "format": format, "fingerprint": _fingerprint(paths, numbers)}
    table = Table(
        dict(zip(_NUMBERS, numbers, strict=True)),
        {name: _texts_of(column) for name, column in zip(_TEXTS, texts, strict=True)},
        {name.encode(): text.encode() for name, text in metadata.items()},
    )
    return Manifest(table, source="a manifest in memory")


def load_manifest(file: Path | bytes, *, source: str) -> Manifest:
    """Open a manifest: a path is mapped. ``source`` names it in errors.

    Raises:
        CorpusError: it is damaged.
    """
    import pyarrow as pa

    try:
        data = pa.memory_map(str(file)) if isinstance(file, Path) else pa.BufferReader(file)
        reader = pa.ipc.open_file(data)
        if reader.num_record_batches != 1:
            raise pa.ArrowInvalid(f"{reader.num_record_batches} record batches instead of one")
        table = _table_of(reader.get_batch(0))
    except (pa.ArrowException, OSError, MemoryError, KeyError, ValueError, IndexError, TypeError) as error:
        raise _damaged(source, error) from error
    return Manifest(table, source=source)


def _fingerprint(paths: Sequence[str], numbers: Sequence[NDArray[np.int64]]) -> str:
    """Hash the ordered (path, bytes, samples, tokens): the same for every copy of the corpus."""
    hasher = hashlib.blake2b(b"iostack fingerprint 1\0", digest_size=16)
    hasher.update("\0".join(paths).encode())
    for column in numbers:
        hasher.update(column.astype("<i8", copy=False).data)
    return hasher.hexdigest()
