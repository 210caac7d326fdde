"""Format "mds": MosaicML streaming's shards ``*.mds`` with the ``index.json`` that describes them.

The index may lie beside the shards, or above them where ``merge_index`` joined several folders. A shard, little endian,
after ``streaming/base/format/mds/writer.py``:

    u32 samples N
    u32[N + 1]  where each sample begins, and the end
    JSON        the columns once more; ignored
    samples     u32 sizes of the columns that have no fixed one, then the values
"""

from __future__ import annotations

import hashlib
import logging
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import xxhash

from iostack import hookimpl
from iostack.corpus.contracts import Counts, Format, ObjectInfo, Origin, Sample, Shard, ShardFiles
from iostack.corpus.detect import shards_by_suffix
from iostack.corpus.mapping import Mapped, map_shard
from iostack.corpus.paths import check_path
from iostack.corpus.row_index import RowIndex, load_or_build
from iostack.corpus.shared_index import Fields, SharedIndexes
from iostack.errors import FormatError, SampleError, ShardError

if TYPE_CHECKING:
    from iostack.corpus.values.common import Decode

logger = logging.getLogger(__name__)

_INDEX = "index.json"
_MAX_SHARD_BYTES = 1 << 32
_HASHES = (
    *("xxh3_64", "xxh3_128", "xxh128", "xxh64", "xxh32", "blake2b", "sha1", "blake2s", "md5"),
    *("sha512", "sha384", "sha256", "sha224", "sha3_256", "sha3_224", "sha3_384", "sha3_512"),
)
"""That can be computed, cheapest first."""


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
    """What the index says of one shard; ``hashes`` are those of the uncompressed file."""

    samples: int
    bytes: int
    columns: tuple[Column, ...]
    hashes: tuple[tuple[str, str], ...]


class Mds:
    """Shards ``.mds``, plain or compressed; a plain one is taken before its compressed form, as MosaicML does."""

    name = "mds"
    holds_tokens = False

    def __init__(self) -> None:
        self._indexes = SharedIndexes(self._parse)
        self._listed: frozenset[str] | None = None
        self._complete: set[ObjectInfo] = set()

    def find_shards(self, objects: Sequence[ObjectInfo]) -> Sequence[Shard]:
        found = shards_by_suffix(objects, (".mds",))
        plain = {shard.object.path for shard in found if not shard.compression}
        found = [shard for shard in found if not shard.compression or _stem(shard.object.path) not in plain]
        indexes = {str(PurePosixPath(i.path).parent): i for i in objects if PurePosixPath(i.path).name == _INDEX}
        if not found and indexes:
            _refuse_split_shards(objects)
        self._listed = frozenset(_stem(shard.object.path) for shard in found)
        return [Shard(s.object, (_index_above(s.object.path, indexes),), s.compression) for s in found]

    def count(self, shard: Shard, origin: Origin) -> Counts:
        index = shard.companions[0]
        entry = self._entry(self._indexes.remote(index, origin), shard, f"{origin.uri} {shard.object.path}")
        return Counts(entry.samples)

    def open(self, files: ShardFiles) -> MdsReader:
        entry = self._entry(self._indexes.local(files), files.shard, files.name)
        mapped = map_shard(files.path, name=files.name)
        if len(mapped) != entry.bytes:
            raise ShardError(
                f"{files.name}: {len(mapped):,} bytes, {_INDEX} says {entry.bytes:,}: truncated or damaged",
                hint="copy or write the shard again",
            )
        if entry.hashes:
            # Kept like a row index, so each version of a shard is hashed once per cache folder.
            made_by = f"mds hash {entry.hashes}"
            build = partial(_verify, mapped, entry.hashes, files.name)
            load_or_build(files.index, made_by=made_by, shard_bytes=len(mapped), build=build)
        return MdsReader(files, mapped, entry)

    def _entry(self, entries: dict[str, Entry], shard: Shard, name: str) -> Entry:
        index = shard.companions[0]
        folder = PurePosixPath(index.path).parent
        if self._listed is not None and index not in self._complete:
            if missing := [each for each in entries if str(folder / each) not in self._listed]:
                raise ShardError(
                    f"{name}: {index.path} names {missing[0][:200]}, which is not there ({len(missing):,} missing)",
                    hint="copy the missing shards",
                )
            self._complete.add(index)
        entry = entries.get(str(PurePosixPath(_stem(shard.object.path)).relative_to(folder)))
        if entry is None:
            raise ShardError(f"{name}: {index.path} does not name it", hint="remove it, or copy its own index")
        return entry

    def _parse(self, index: dict[str, Any], source: str) -> dict[str, Entry]:
        """Return the shards of an index by path, relative to the index and without the suffix of a compression."""
        fields = Fields(index, source)
        if fields.get("shards") is None:
            raise FormatError(f"{source}: names no shards: it is no index of MosaicML's")
        if fields.get("version") != 2:
            raise FormatError(f"{source}: is of version {fields.get('version')!r}, only 2 is known")
        known: dict[tuple[Column, ...], tuple[Column, ...]] = {}
        entries: dict[str, Entry] = {}
        for number, found in enumerate(fields.listed("shards")):
            name, entry = _parse_shard(Fields(found, f"{source}: shard {number}"), known)
            if name in entries:
                raise fields.bad(f"two shards are named {name[:200]!r}")
            entries[name] = entry
        return entries


def _parse_shard(fields: Fields, known: dict[tuple[Column, ...], tuple[Column, ...]]) -> tuple[str, Entry]:
    if fields.get("format") != "mds":
        raise FormatError(f"{fields.source}: is of format {fields.get('format')!r}, only 'mds' can be read")
    raw = fields.inner("raw_data")
    name = check_path(raw.text("basename"), source=raw.source)
    names, encodings, sizes = (fields.listed(f"column_{each}") for each in ("names", "encodings", "sizes"))
    if not len(names) == len(encodings) == len(sizes) or len({*map(str, names)}) < len(names):
        raise fields.bad("columns that do not fit together")
    columns = []
    for column, encoding, size in zip(names, encodings, sizes, strict=True):
        fixed = size is None or (type(size) is int and 0 <= size < _MAX_SHARD_BYTES)
        if not isinstance(column, str) or not isinstance(encoding, str) or not fixed:
            raise fields.bad(f"column {column!r} of encoding {encoding!r} and size {size!r}"[:200])
        columns.append(Column(column, encoding, size or None))
    hashes = raw.get("hashes") or {}
    if not isinstance(hashes, dict) or not all(isinstance(value, str) for value in hashes.values()):
        raise raw.bad("hashes that are no texts")
    num_bytes = raw.number("bytes", limit=_MAX_SHARD_BYTES)
    samples = fields.number("samples", limit=num_bytes // 4)
    shared = known.setdefault(tuple(columns), tuple(columns))
    return name, Entry(samples, num_bytes, shared, tuple(sorted(hashes.items())))


def _stem(path: str) -> str:
    return path[: path.lower().rindex(".mds") + 4]


def _index_above(path: str, indexes: dict[str, ObjectInfo]) -> ObjectInfo:
    for folder in PurePosixPath(path).parents:
        if (index := indexes.get(str(folder))) is not None:
            return index
    raise FormatError(
        f"{path} has no {_INDEX} beside it or above it",
        hint="open the folder that holds both, or copy the missing file",
    )


def _refuse_split_shards(objects: Sequence[ObjectInfo]) -> None:
    for info in objects:
        kinds = PurePosixPath(info.path).suffixes
        if kinds[-1:] == [".meta"] and kinds[-2:-1] in ([".json"], [".csv"], [".tsv"], [".xsv"]):
            raise FormatError(
                f"{info.path}: MosaicML shards of JSON or separated values are not read",
                hint="write them again with MDSWriter, or as JSONL",
            )


def _verify(mapped: Mapped, hashes: Sequence[tuple[str, str]], name: str) -> RowIndex:
    """Compare the file with the cheapest of its hashes; one that nobody here can compute is told."""
    by_name = dict(hashes)
    kind = next((each for each in _HASHES if each in by_name), None)
    if kind is None:
        logger.warning("%s: not verified: its hashes are of unknown kinds: %s", name, ", ".join(by_name))
        return RowIndex({}, {})
    hasher = getattr(xxhash if kind.startswith("xxh") else hashlib, kind)
    if (found := hasher(mapped).hexdigest()) != by_name[kind].lower():
        raise ShardError(
            f"{name}: its {kind} is {found}, {_INDEX} says {by_name[kind][:128]}", hint="copy or write the shard again"
        )
    return RowIndex({}, {"verified": kind})


class MdsReader:
    """Samples of one shard, sliced out of its map."""

    def __init__(self, files: ShardFiles, mapped: Mapped, entry: Entry) -> None:
        import numpy as np

        self._name = files.name
        self._mapped: Mapped = mapped
        self._columns = [(each.name, _decoder(each, files), each.size) for each in entry.columns]
        self._sizes = struct.Struct(f"<{sum(each.size is None for each in entry.columns)}I")
        self.counts = Counts(entry.samples)
        first = 4 * (entry.samples + 2)
        if len(mapped) < first or int.from_bytes(mapped[:4], "little") != entry.samples:
            raise self._damaged(f"it does not hold the {entry.samples:,} samples that {_INDEX} says")
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
