"""Format "mds": MosaicML streaming's shards ``*.mds`` with the ``index.json`` that describes them.

A shard, little endian, after ``streaming/base/format/mds/writer.py``:

    u32 samples N
    u32[N + 1]  where each sample begins, and the end
    JSON        the columns once more; ignored
    samples     u32 sizes of the columns that have no fixed one, then the values
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from iostack import hookimpl
from iostack.corpus.contracts import Counts, Format, ObjectInfo, Origin, Sample, Shard, ShardFiles
from iostack.corpus.detect import shards_by_suffix
from iostack.corpus.mapping import Mapped, map_shard
from iostack.corpus.mosaicml_index import (
    INDEX,
    MAX_FILE_BYTES,
    MosaicIndexes,
    StoredFile,
    index_above,
    indexes_of,
    parse_file,
    verify,
)
from iostack.corpus.shared_index import Fields
from iostack.errors import FormatError, SampleError, ShardError

if TYPE_CHECKING:
    from iostack.corpus.values.common import Decode

_ARROW_TYPES = {"str": "string", "int": "int64", "bytes": "binary", "jpeg": "binary", "png": "binary"}
_ARROW_TYPES |= {f"{sign}int{bits}": f"{sign}int{bits}" for sign in ("u", "") for bits in (8, 16, 32, 64)}


@hookimpl
def iostack_formats() -> Sequence[Format]:
    return [Mds()]


@dataclass(frozen=True)
class Column:
    """One column: its encoding, and its size in bytes if that is fixed."""

    name: str
    encoding: str
    size: int | None


@dataclass(frozen=True)
class Entry:
    """What the index says of one shard."""

    samples: int
    data: StoredFile
    columns: tuple[Column, ...]


class Mds:
    """Shards ``.mds``, plain or compressed; a plain one is taken before its compressed form, as MosaicML does."""

    name = "mds"
    holds_tokens = False

    def __init__(self) -> None:
        self._indexes = MosaicIndexes(_parse_shard)

    def find_shards(self, objects: Sequence[ObjectInfo]) -> Sequence[Shard]:
        found = shards_by_suffix(objects, (".mds",))
        plain = {shard.object.path for shard in found if not shard.compression}
        found = [shard for shard in found if not shard.compression or _stem(shard.object.path) not in plain]
        indexes = indexes_of(objects)
        self._indexes.expect(_stem(shard.object.path) for shard in found)
        return [Shard(s.object, (index_above(s.object.path, indexes),), s.compression) for s in found]

    def count(self, shard: Shard, origin: Origin) -> Counts:
        entry = self._indexes.remote(shard, _stem(shard.object.path), origin)
        entry.data.check_listed(shard.object, is_packed=bool(shard.compression), uri=origin.uri)
        return Counts(entry.samples)

    def open(self, files: ShardFiles) -> MdsReader:
        entry = self._indexes.local(files, _stem(files.shard.object.path))
        mapped = map_shard(files.path, name=files.name)
        verify(files, [(files.name, entry.data, mapped)])
        return MdsReader(files, mapped, entry)


def _parse_shard(fields: Fields) -> Entry:
    if fields.get("format") != "mds":
        raise FormatError(f"{fields.source}: is of format {fields.get('format')!r}, only 'mds' can be read")
    names, encodings, sizes = (fields.listed(f"column_{each}") for each in ("names", "encodings", "sizes"))
    if not len(names) == len(encodings) == len(sizes) or len({*map(str, names)}) < len(names):
        raise fields.bad("columns that do not fit together")
    columns = []
    for column, encoding, size in zip(names, encodings, sizes, strict=True):
        fixed = size is None or (type(size) is int and 0 <= size < MAX_FILE_BYTES)
        if not isinstance(column, str) or not isinstance(encoding, str) or not fixed:
            raise fields.bad(f"column {column!r} of encoding {encoding!r} and size {size!r}"[:200])
        columns.append(Column(column, encoding, size or None))
    data = parse_file(fields, "data")
    return Entry(fields.number("samples", limit=data.bytes // 4), data, _shared(tuple(columns)))


@lru_cache(maxsize=64)
def _shared(columns: tuple[Column, ...]) -> tuple[Column, ...]:
    """Return one tuple for all shards of equal columns: an index may name a million shards."""
    return columns


def _stem(path: str) -> str:
    return path[: path.lower().rindex(".mds") + 4]


class MdsReader:
    """Samples of one shard, sliced out of its map."""

    def __init__(self, files: ShardFiles, mapped: Mapped, entry: Entry) -> None:
        import numpy as np

        self._name = files.name
        self._mapped: Mapped = mapped
        self._encodings = {each.name: each.encoding for each in entry.columns}
        self._columns = [(each.name, _decoder(each, files), each.size) for each in entry.columns]
        self._sizes = struct.Struct(f"<{sum(each.size is None for each in entry.columns)}I")
        self.counts = Counts(entry.samples)
        first = 4 * (entry.samples + 2)
        if len(mapped) < first or int.from_bytes(mapped[:4], "little") != entry.samples:
            raise self._damaged(f"it does not hold the {entry.samples:,} samples that {INDEX} says")
        self._starts = np.frombuffer(mapped, "<u4", entry.samples + 1, 4)
        if self._starts[0] < first or self._starts[-1] > len(mapped) or (self._starts[1:] < self._starts[:-1]).any():
            raise self._damaged("samples that lie outside of it or not in order")

    def read(self, rows: Sequence[int]) -> Sequence[Sample | Exception]:
        import numpy as np

        wanted = np.asarray(rows, np.int64)
        starts, stops = self._starts[wanted].tolist(), self._starts[wanted + 1].tolist()
        return [self._sample(*place) for place in zip(wanted.tolist(), starts, stops, strict=True)]

    def _sample(self, row: int, start: int, stop: int) -> Sample | Exception:
        from iostack.corpus.values.common import BAD_VALUE

        mapped, at, name = self._mapped, start + self._sizes.size, None
        if at > stop:
            return self._bad(row, name, "it is too short")
        sizes = iter(self._sizes.unpack_from(mapped, start))
        sample: Sample = {}
        try:
            for name, decode, size in self._columns:
                end = at + (next(sizes) if size is None else size)
                if end > stop:
                    return self._bad(row, name, "it runs beyond the sample")
                sample[name] = decode(mapped[at:end])
                at = end
        except BAD_VALUE as error:
            return self._bad(row, name, str(error))
        return sample if at == stop else self._bad(row, None, f"{stop - at:,} bytes more than its columns")

    def types(self) -> dict[str, Any]:
        """Return the Arrow type of each column whose encoding is of one."""
        import pyarrow as pa

        return {
            name: pa.type_for_alias(_ARROW_TYPES[encoding])
            for name, encoding in self._encodings.items()
            if encoding in _ARROW_TYPES
        }

    def close(self) -> None:
        self._mapped = b""

    def _bad(self, row: int, column: str | None, reason: str) -> SampleError:
        where = f"row {row:,}" if column is None else f"row {row:,}: column {column!r}"
        return SampleError(f"{self._name}: {where}: {reason}", hint="write the shard again without it")

    def _damaged(self, reason: str) -> ShardError:
        return ShardError(f"{self._name}: {reason}", hint="copy or write the shard again")


def _decoder(column: Column, files: ShardFiles) -> Decode:
    from iostack.corpus.values.mds import decoder

    try:
        return decoder(column.encoding, column.name, allow_pickle=files.allow_pickle, source=files.name)
    except ValueError as error:
        raise ShardError(f"{files.name}: the column {column.name!r} has {error}") from error
