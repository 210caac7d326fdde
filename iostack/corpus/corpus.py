"""A corpus: what is behind a URI, as shards that can be brought here, opened and read by row."""

from __future__ import annotations

import operator
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

import numpy as np
from numpy.typing import NDArray

from iostack.cache.folder import cache_folder
from iostack.corpus.contracts import (
    Columns,
    Counts,
    Format,
    ObjectInfo,
    Origin,
    Sample,
    Shard,
    ShardFiles,
    ShardReader,
    TableFormat,
    TableReader,
)
from iostack.corpus.damage import or_damage, refuse_damaged
from iostack.corpus.deadline import in_threads
from iostack.corpus.detect import Detected, detect, format_named
from iostack.corpus.kinds import Kinds
from iostack.corpus.manifest import Manifest, load_manifest, manifest_of
from iostack.corpus.mapping import allow_many_files
from iostack.corpus.place import Place
from iostack.errors import CorpusError, FormatError, ShardError, UsageError
from iostack.forks import renew_in_children
from iostack.lazy import lazy

_OPEN_READERS = 128
_OPENING_LOCKS = 64
_COUNT_THREADS = 16


def open_corpus(
    uri: str | os.PathLike[str],
    *,
    format: str | None = None,
    columns: Sequence[str] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    **storage_options: Any,
) -> Corpus:
    """Open what is behind ``uri``: a folder, a prefix or one object, local or of any scheme that fsspec knows.

    With a manifest (``iostack index URI``) nothing is listed; without one the origin is listed and the format is told
    by the objects' names. ``columns`` of a table are read, and the others are not even decoded. ``storage_options`` go to
    the storage plugin as they are, but for ``allow_pickle``, which names columns of MDS and litData shards whose pickled
    values are to be loaded: a pickle can run any code.

    Raises:
        CorpusNotFoundError: nothing is there.
        FormatError: no format, or several, claim what is there.
        ShardError: shards are not what their index says, as far as a few small reads can tell.
        OriginError: the storage did not answer.
        UsageError: ``columns`` of a format that has none.
    """
    chosen = as_columns(columns)
    allow_many_files()
    place = Place(os.fspath(uri), cache_folder(cache_dir), storage_options)
    if (kept := place.load_manifest()) is not None:
        if format not in (None, kept.format):
            raise FormatError(
                f"{place.uri} was indexed as {kept.format}, not as {format}",
                hint=f"run: iostack index --format {format} {place.uri}",
            )
        return Corpus(place, format_named(kept.format), kept, indexed=True, columns=chosen)
    found = detect(place.origin.list(), format=format, uri=place.uri)
    manifest = manifest_of(found.format.name, found.shards, _cheap_counts(found, place))
    return Corpus(place, found.format, manifest, ignored=found.ignored, columns=chosen)


class Corpus:
    """All data behind one URI. Thread-safe. Pickles as its URI and options, and opens anew where it is unpickled."""

    def __init__(
        self,
        place: Place,
        format: Format,
        manifest: Manifest,
        *,
        indexed: bool = False,
        ignored: tuple[ObjectInfo, ...] = (),
        columns: Columns = None,
    ) -> None:
        if columns is not None:
            refuse_to_choose_columns(format, place.uri)
        self.uri = place.uri
        self.format = format
        self.manifest = manifest
        self.fingerprint = manifest.fingerprint
        self.num_shards = manifest.num_shards
        self.indexed = indexed
        """Whether the manifest was read, rather than made from a listing."""
        self.ignored = ignored
        """Objects of the listing that no format claimed; empty if there was a manifest, since nothing was listed."""
        self.columns = columns
        """The columns that samples have, in this order; None: all that are there."""
        self._own_place = place
        self._is_forked = False
        self._readers: OrderedDict[int, ShardReader] = OrderedDict()
        self._readers_lock = threading.Lock()
        self._kinds = Kinds(self.shard_name)
        self._opening = [threading.Lock() for _ in range(_OPENING_LOCKS)]
        renew_in_children(self)

    @property
    def holds_tokens(self) -> bool:
        """Whether the readers are ``TokenShardReader``: by the format, or, in formats that hold either, by the counts."""
        return self.format.holds_tokens or self.manifest.tokens is not None

    @property
    def _place(self) -> Place:
        if self._is_forked:  # storage clients have threads and sockets of their own, which no child may use
            self._own_place, self._is_forked = Place(*self._own_place.arguments), False
        return self._own_place

    def renew_after_fork(self) -> None:
        """Be usable in a forked child: new locks, and a new client of the storage when one is needed."""
        self._readers_lock = threading.Lock()
        self._opening = [threading.Lock() for _ in range(_OPENING_LOCKS)]
        self._is_forked = True

    def __repr__(self) -> str:
        return f"<Corpus {self.uri}: {self.format.name}, {self.num_shards:,} shards>"

    def __len__(self) -> int:
        """Return the number of samples.

        Raises:
            CorpusError: the shards have not been counted.
        """
        return int(self._ends[-1]) if self.num_shards else 0

    def __getitem__(self, index: int) -> Sample:
        """Return one sample; opens its shard if it is not open.

        Raises:
            IndexError: beyond the ends.
            SampleError: that sample is bad.
        """
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Sample]:
        """Return samples in the order of ``indices``, read shard by shard: what torch's ``DataLoader`` calls per batch.

        Raises:
            IndexError: one is beyond the ends.
            SampleError: one of them is bad.
            TypeError: one is no integer; numpy would cut a fraction off.
        """
        length = len(self)
        indices = [operator.index(index) for index in indices]
        if beyond := [index for index in indices if not -length <= index < length]:
            raise IndexError(f"sample {beyond[0]} of {length}")
        positions = np.asarray(indices, np.int64) % max(length, 1)
        shards = np.searchsorted(self._ends, positions, side="right")
        samples: dict[int, Sample] = {}
        for shard in sorted(set(shards.tolist())):
            (chosen,) = np.nonzero(shards == shard)
            first = int(self._ends[shard - 1]) if shard else 0
            rows = (positions[chosen] - first).tolist()
            for place, sample in zip(chosen.tolist(), self.open_shard(shard).read(rows), strict=True):
                if isinstance(sample, Exception):
                    raise sample
                samples[place] = sample
        return [samples[place] for place in range(len(samples))]

    def open_shard(self, shard: int) -> ShardReader:
        """Return the reader of a shard, bringing its bytes here first. It stays valid for as long as it is held.

        Raises:
            ShardError: damaged, or not what the manifest says.
        """
        with self._opening[shard % len(self._opening)]:
            with self._readers_lock:
                if (reader := self._readers.get(shard)) is not None:
                    self._readers.move_to_end(shard)
                    return reader
            files = self._place.shard_files(self.manifest.shard(shard), self.format, self.columns)
            reader = self.format.open(files)
            self._check_counts(shard, reader.counts)
            if isinstance(reader, TableReader):
                with self._readers_lock:
                    self._kinds.meet(shard, reader.kinds)
            with self._readers_lock:
                self._readers[shard] = reader
                while len(self._readers) > _OPEN_READERS:
                    self._readers.popitem(last=False)  # its files close when the last user lets go of it
            return reader

    def fetch_shard(self, shard: int) -> None:
        """Bring the bytes of a shard to this machine; returns at once if they are here."""
        self._place.shard_files(self.manifest.shard(shard), self.format, self.columns)

    def local_files(self, shard: int) -> ShardFiles:
        """Return the local files of a shard, bringing them here first."""
        return self._place.shard_files(self.manifest.shard(shard), self.format, self.columns)

    @property
    def origin(self) -> Origin:
        """The storage itself, past the cache."""
        return self._place.origin

    @property
    def cache_folder(self) -> Path:
        """Where remote and unpacked shards are kept."""
        return self._place.folder

    def is_resident(self, shard: int) -> bool:
        """Return whether the bytes of a shard are on this machine."""
        return self._place.is_resident(self.manifest.shard(shard), self.format, self.columns)

    def with_columns(self, columns: Sequence[str]) -> Corpus:
        """Return the same corpus with other columns; it has open shards of its own."""
        return Corpus(
            self._place,
            self.format,
            self.manifest,
            indexed=self.indexed,
            ignored=self.ignored,
            columns=as_columns(columns),
        )

    def shard_name(self, shard: int) -> str:
        """Return the URI of a shard, without credentials."""
        return self._place.name(self.manifest.path(shard))

    def close(self) -> None:
        """Close the open shards; arrays handed out stay valid."""
        with self._readers_lock:
            while self._readers:
                self._readers.popitem()[1].close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __reduce__(self) -> tuple[object, ...]:
        return _reopen, (*self._place.arguments, self.format.name, self.columns)

    def address(self) -> CorpusAddress:
        """Return what another process opens the same corpus by, shard for shard, without listing it anew."""
        manifest = b"" if self.indexed else self.manifest.to_bytes()
        return CorpusAddress(*self._place.arguments, self.format.name, self.columns, self.fingerprint, manifest)

    @lazy
    def _ends(self) -> NDArray[np.int64]:
        if self.manifest.samples is None:
            raise CorpusError(
                f"{self.uri}: the samples of its shards have not been counted", hint=f"run: iostack index {self.uri}"
            )
        return cast("NDArray[np.int64]", np.cumsum(self.manifest.samples))

    def _check_counts(self, shard: int, found: Counts) -> None:
        known = self.manifest.counts(shard)
        if known is not None and known != found:
            raise ShardError(
                f"{self.shard_name(shard)} holds {found.samples:,} samples, the manifest says {known.samples:,}",
                hint=f"run: iostack index {self.uri}",
            )


def refuse_to_choose_columns(format: Format, uri: str) -> None:
    """Raise UsageError where shards are read whole, as all but those of tables."""
    if not isinstance(format, TableFormat):
        raise UsageError(
            f"{uri}: shards of {format.name} are read whole, so columns cannot be chosen",
            hint='leave columns out, or drop the others with the transform {name = "keep", columns = [...]}',
        )


def as_columns(columns: Sequence[str] | None) -> Columns:
    """Return the columns to read, each once; raises UsageError where there is none."""
    if columns is None:
        return None
    chosen = (columns,) if isinstance(columns, str) else tuple(dict.fromkeys(columns))
    if not chosen:
        raise UsageError("columns is empty: a sample needs one column at least", hint="leave it out to read all")
    return chosen


def _reopen(uri: str, folder: Path, options: dict[str, Any], format: str, columns: Columns) -> Corpus:
    return open_corpus(uri, format=format, columns=columns, cache_dir=folder, **options)


@dataclass(frozen=True)
class CorpusAddress:
    """A corpus as values; it pickles. ``options`` may hold credentials. ``manifest`` is empty where one was read."""

    uri: str
    folder: Path
    options: dict[str, Any]
    format: str
    columns: Columns
    fingerprint: str
    manifest: bytes

    def open(self) -> Corpus:
        """Open the corpus.

        Raises:
            CorpusError: it is another one by now.
        """
        if self.manifest:
            place = Place(self.uri, self.folder, self.options)
            manifest = load_manifest(self.manifest, source=place.uri)
            return Corpus(place, format_named(self.format), manifest, columns=self.columns)
        corpus = open_corpus(self.uri, format=self.format, columns=self.columns, cache_dir=self.folder, **self.options)
        if corpus.fingerprint != self.fingerprint:
            raise CorpusError(f"{corpus.uri} was indexed anew since it was opened", hint="start again")
        return corpus


def _cheap_counts(found: Detected, place: Place) -> list[Counts | None]:
    """Count the shards if the format can without opening them; the first one tells whether it can."""

    def count_one(shard: Shard) -> Counts | None:
        return found.format.count(shard, place.origin)

    count = or_damage(count_one)
    counts: list[Counts | ShardError | None] = [count(found.shards[0])] + [None] * (len(found.shards) - 1)
    if counts[0] is None:
        return [None] * len(found.shards)
    for number, counted in in_threads(count, found.shards[1:], threads=_COUNT_THREADS):
        counts[number + 1] = counted
    refuse_damaged(counts, uri=place.uri)
    return [each for each in counts if not isinstance(each, ShardError)]
