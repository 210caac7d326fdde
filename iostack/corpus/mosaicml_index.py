"""What MosaicML's ``index.json`` says of shards of any of its formats: the files of each, their sizes and hashes.

The index may lie beside the shards, or above them where ``merge_index`` joined several folders.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import Any, Generic, Protocol, TypeVar

import xxhash

from iostack import logs
from iostack.corpus.contracts import ObjectInfo, Origin, Shard, ShardFiles
from iostack.corpus.mapping import Mapped
from iostack.corpus.origins import object_uri
from iostack.corpus.paths import check_path
from iostack.corpus.row_index import RowIndex, load_or_build
from iostack.corpus.shared_index import Fields, SharedIndexes
from iostack.errors import FormatError, ShardError

logger = logs.logger(__name__)

INDEX = "index.json"
MAX_FILE_BYTES = 1 << 32
_HASHES = (
    *("xxh3_64", "xxh3_128", "xxh128", "xxh64", "xxh32", "blake2b", "sha1", "blake2s", "md5"),
    *("sha512", "sha384", "sha256", "sha224", "sha3_256", "sha3_224", "sha3_384", "sha3_512"),
)
"""That can be computed, cheapest first."""


@dataclass(frozen=True)
class StoredFile:
    """One file of a shard: its path below the index, its bytes and hashes as it was before it was compressed."""

    path: str
    bytes: int
    hashes: tuple[tuple[str, str], ...]
    packed_bytes: int | None
    """Compressed; None where it is not."""

    def check_listed(self, info: ObjectInfo, *, is_packed: bool, uri: str) -> None:
        """Compare the size with that in the listing of the corpus at ``uri``.

        Raises:
            ShardError: it is another one.
        """
        expected = self.packed_bytes if is_packed else self.bytes
        if expected is not None and info.bytes != expected:
            raise truncated(object_uri(uri, info.path), info.bytes, expected)


class Described(Protocol):
    """What is known of one shard."""

    @property
    def samples(self) -> int: ...

    @property
    def data(self) -> StoredFile:
        """The file that names the shard."""
        ...


Entry = TypeVar("Entry", bound=Described)


class MosaicIndexes(Generic[Entry]):
    """The indexes of one corpus; ``parse_shard`` makes an entry of what one says of a shard. Thread-safe."""

    def __init__(self, parse_shard: Callable[[Fields], Entry]) -> None:
        self._parse_shard = parse_shard
        self._indexes = SharedIndexes(self._parse)
        self._listed: frozenset[str] | None = None
        self._complete: set[ObjectInfo] = set()

    def expect(self, paths: Iterable[str]) -> None:
        """Take note of the shards that were listed, by their paths before compression: an index that names more is refused."""
        self._listed = frozenset(paths)

    def remote(self, shard: Shard, path: str, origin: Origin) -> Entry:
        """Return what the index of a shard, whose path before compression is ``path``, says of it.

        Raises:
            ShardError: nothing, or the index is damaged or hostile.
        """
        index = self._indexes.remote(shard.companions[0], origin)
        return self._entry(index, shard, path, origin.uri)

    def local(self, files: ShardFiles, path: str) -> Entry:
        """Return the same of a shard whose files are here."""
        uri = files.name.removesuffix(f"/{files.shard.object.path}")
        return self._entry(self._indexes.local(files), files.shard, path, uri)

    def _entry(self, entries: Mapping[str, Entry], shard: Shard, path: str, uri: str) -> Entry:
        index = shard.companions[0]
        folder = PurePosixPath(index.path).parent
        if self._listed is not None and index not in self._complete:
            if missing := [each for each in entries if str(folder / each) not in self._listed]:
                raise ShardError(
                    f"{object_uri(uri, index.path)} names {missing[0][:200]}, which is not there ({len(missing):,} missing)",
                    hint="copy the missing shards",
                )
            self._complete.add(index)
        entry = entries.get(str(PurePosixPath(path).relative_to(folder)))
        if entry is None:
            raise ShardError(
                f"{object_uri(uri, shard.object.path)}: {index.path} does not name it",
                hint="remove it, or copy its own index",
            )
        return entry

    def _parse(self, index: dict[str, Any], source: str) -> dict[str, Entry]:
        """Return the shards of an index by path, relative to the index and without the suffix of a compression."""
        fields = Fields(index, source)
        if fields.get("shards") is None:
            raise FormatError(f"{source}: names no shards: it is no index of MosaicML's")
        if fields.get("version") != 2:
            raise FormatError(f"{source}: is of version {fields.get('version')!r}, only 2 is known")
        entries: dict[str, Entry] = {}
        for number, found in enumerate(fields.listed("shards")):
            entry = self._parse_shard(Fields(found, f"{source}: shard {number}"))
            if entry.data.path in entries:
                raise fields.bad(f"two shards are named {entry.data.path[:200]!r}")
            entries[entry.data.path] = entry
        return entries


def index_above(path: str, indexes: Mapping[str, ObjectInfo]) -> ObjectInfo:
    """Return the index of a shard, among those of all folders.

    Raises:
        FormatError: there is none.
    """
    for folder in PurePosixPath(path).parents:
        if (index := indexes.get(str(folder))) is not None:
            return index
    raise FormatError(
        f"{path} has no {INDEX} beside it or above it",
        hint="open the folder that holds both, or copy the missing file",
    )


def indexes_of(objects: Sequence[ObjectInfo]) -> dict[str, ObjectInfo]:
    """Return the indexes among ``objects`` by the folder that each lies in."""
    return {str(PurePosixPath(i.path).parent): i for i in objects if PurePosixPath(i.path).name == INDEX}


def parse_file(fields: Fields, kind: str) -> StoredFile:
    """Return the file of a shard that is its "data" or its "meta".

    Raises:
        ShardError: what the index says of it is impossible.
    """
    raw = fields.inner(f"raw_{kind}")
    hashes = raw.get("hashes") or {}
    if not isinstance(hashes, dict) or not all(isinstance(value, str) for value in hashes.values()):
        raise raw.bad("hashes that are no texts")
    path = check_path(raw.text("basename"), source=raw.source)
    packed = fields.get(f"zip_{kind}")
    packed_bytes = fields.inner(f"zip_{kind}").number("bytes", limit=MAX_FILE_BYTES) if packed else None
    num_bytes = raw.number("bytes", limit=MAX_FILE_BYTES)
    return StoredFile(path, num_bytes, tuple(sorted(hashes.items())), packed_bytes)


def verify(files: ShardFiles, named: Sequence[tuple[str, StoredFile, Mapped | memoryview]]) -> None:
    """Compare (name, what the index says, bytes) of each file of a shard: their sizes, and the cheapest of their hashes.

    It is noted like a row index, so each version of a shard is hashed once per cache folder.

    Raises:
        ShardError: one is another file.
    """
    for name, stored, data in named:
        if len(data) != stored.bytes:
            raise truncated(name, len(data), stored.bytes)
    if hashes := [stored.hashes for _, stored, _ in named if stored.hashes]:
        num_bytes = sum(len(data) for *_, data in named)
        load_or_build(files.index, made_by=f"mds hash {hashes}", shard_bytes=num_bytes, build=partial(_hash_all, named))


def truncated(name: str, found: int, expected: int) -> ShardError:
    """Return the error of a file of another size."""
    return ShardError(
        f"{name}: {found:,} bytes, {INDEX} says {expected:,}: truncated or damaged",
        hint="copy or write the shard again",
    )


def _hash_all(named: Sequence[tuple[str, StoredFile, Mapped | memoryview]]) -> RowIndex:
    return RowIndex({}, {stored.path: _hash(name, stored, data) for name, stored, data in named})


def _hash(name: str, stored: StoredFile, data: Mapped | memoryview) -> str:
    """Return the kind of hash that a file was compared by; empty where nobody here can compute any, which is told."""
    by_kind = dict(stored.hashes)
    kind = next((each for each in _HASHES if each in by_kind), None)
    if kind is None:
        if by_kind:
            logger.warning("%s: not verified: its hashes are of unknown kinds: %s", name, ", ".join(by_kind))
        return ""
    hasher = getattr(xxhash if kind.startswith("xxh") else hashlib, kind)
    if (found := hasher(data).hexdigest()) != by_kind[kind].lower():
        raise ShardError(
            f"{name}: its {kind} is {found}, {INDEX} says {by_kind[kind][:128]}", hint="copy or write the shard again"
        )
    return kind
