"""Write the manifest of a corpus: count its shards, in parallel, and only those that changed since the last time."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from iostack.cache.folder import cache_folder
from iostack.corpus.contracts import Counts, Format, ObjectInfo, Shard, TableFormat, TableReader
from iostack.corpus.corpus import as_columns, refuse_to_choose_columns
from iostack.corpus.damage import or_damage, refuse_damaged
from iostack.corpus.deadline import in_threads
from iostack.corpus.detect import Detected, detect
from iostack.corpus.kinds import Kinds
from iostack.corpus.manifest import SIDECAR, Manifest, manifest_of
from iostack.corpus.place import Place
from iostack.errors import CacheError, CorpusError, ShardError

_THREADS = 8

Progress = Callable[[int, int], None]
"""Called with (shards counted, shards to count); from one thread."""


@dataclass(frozen=True)
class Indexed:
    """What indexing did. ``file`` is where the manifest lies; nothing was written if no shard changed."""

    manifest: Manifest
    file: str
    num_counted: int
    ignored: tuple[ObjectInfo, ...]


def build_manifest(
    uri: str | os.PathLike[str],
    *,
    format: str | None = None,
    columns: Sequence[str] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    threads: int = _THREADS,
    progress: Progress | None = None,
    **storage_options: Any,
) -> Indexed:
    """List a corpus, count the shards that the manifest does not know as they are, and write the manifest.

    It goes beside the corpus, or into the cache folder where the corpus cannot be written to; it is replaced as a whole.
    Shards of columns must have the same, of the same kinds: all of them, or ``columns`` alone.

    Raises:
        CorpusError: as ``open_corpus``, and where shards cannot be read, or differ: all are looked at first.
        UsageError: ``columns`` of a format that has none, or that are not there.
    """
    columns = as_columns(columns)
    place = Place(os.fspath(uri), cache_folder(cache_dir), storage_options)
    found = detect(place.origin.list(), format=format, uri=place.uri)
    if columns is not None:
        refuse_to_choose_columns(found.format, place.uri)
    before = _manifest_before(place)
    known = _known_counts(before)
    counts: list[Counts | None] = [known.get(shard) for shard in found.shards]
    changed = [number for number, count in enumerate(counts) if count is None]
    damaged: dict[int, ShardError] = {}
    num_done = 0

    def show() -> None:
        if progress is not None:
            progress(num_done, len(changed))

    def count(number: int) -> Counts:
        return _count(place, found.format, found.shards[number])

    for at, counted in in_threads(or_damage(count), changed, threads=threads, tick=show):
        if isinstance(counted, ShardError):
            damaged[changed[at]] = counted
        else:
            counts[changed[at]] = counted
        num_done += 1
        show()
    refuse_damaged([damaged.get(number) for number in range(len(counts))], uri=place.uri)
    _refuse_drift(place, found, counts, changed, columns)
    manifest = manifest_of(found.format.name, found.shards, counts)
    if before is not None and not changed and before.fingerprint == manifest.fingerprint:
        return Indexed(before, _manifest_file(place), 0, found.ignored)
    if before is not None:
        manifest = manifest.with_vocab_size(before.vocab_size)
    return Indexed(manifest, _write(place, manifest), len(changed), found.ignored)


def _count(place: Place, format: Format, shard: Shard) -> Counts:
    is_local = place.origin.local_path(shard.object.path) is not None
    # Opening checks more than counting does, and costs little where nothing has to be fetched or unpacked.
    if (not is_local or isinstance(format, TableFormat)) and (counts := format.count(shard, place.origin)) is not None:
        return counts
    reader = format.open(place.shard_files(shard, format))
    try:
        return replace(reader.counts, kinds=reader.kinds) if isinstance(reader, TableReader) else reader.counts
    finally:
        reader.close()


def _refuse_drift(
    place: Place,
    found: Detected,
    counts: Sequence[Counts | None],
    changed: Sequence[int],
    columns: Sequence[str] | None,
) -> None:
    """Compare the columns of the shards that were counted now with each other, and with one that was known before.

    Where nothing was counted, ``columns`` are still looked for in that one.
    """
    from iostack.corpus.arrow_unpack import chosen_columns

    seen = {
        number: counted for number in changed if (counted := counts[number]) is not None and counted.kinds is not None
    }
    before = next((number for number in range(len(counts)) if number not in seen), None)
    if before is not None and (seen or columns is not None):
        again = _count(place, found.format, found.shards[before])
        if again.kinds is not None:
            seen[before] = again
    kinds = Kinds(lambda number: place.name(found.shards[number].object.path))
    for number, counted in sorted(seen.items()):
        own = counted.kinds or {}
        chosen = own if columns is None else chosen_columns(tuple(columns), list(own), name=kinds.name(number))
        kinds.meet(number, {column: own[column] for column in chosen})


def _manifest_before(place: Place) -> Manifest | None:
    try:
        return place.load_manifest()
    except CorpusError:  # damaged: it is about to be replaced
        return None


def _known_counts(manifest: Manifest | None) -> dict[Shard, Counts]:
    if manifest is None:
        return {}
    known = ((manifest.shard(number), manifest.counts(number)) for number in range(manifest.num_shards))
    return {shard: counts for shard, counts in known if counts is not None}


def _manifest_file(place: Place) -> str:
    return place.name(SIDECAR) if place.origin.info(SIDECAR) else str(place.own_manifest)


def _write(place: Place, manifest: Manifest) -> str:
    data, own = manifest.to_bytes(), place.own_manifest
    if place.origin.write(SIDECAR, data):
        own.unlink(missing_ok=True)
        return place.name(SIDECAR)
    temporary = own.with_name(f"{own.name}.{os.getpid()}.part")
    try:
        own.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        temporary.write_bytes(data)
        temporary.replace(own)
    except OSError as error:
        raise CacheError(
            f"the manifest can be written neither beside {place.uri} nor to {own}: {error.strerror}",
            hint="name a folder with space in it with --cache-dir or IOSTACK_CACHE",
        ) from error
    return str(own)
