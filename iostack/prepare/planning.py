"""What a conversion will do, as a pure function of source and options: so that a second run does the same.

Some rows, spread over the source, are converted for a trial. They tell the layout of all shards, and how many bytes a row
becomes: from that follows how many rows make a shard.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from iostack.cache.folder import cache_folder, object_id
from iostack.corpus.contracts import Counts, Sample, ShardReader
from iostack.corpus.corpus import Corpus
from iostack.corpus.deadline import in_threads
from iostack.corpus.detect import format_named
from iostack.corpus.manifest import manifest_of
from iostack.errors import PrepareError
from iostack.loader.order.named import find_filters, find_transforms
from iostack.prepare.bad_rows import BadRows
from iostack.prepare.contracts import Layout, Writer
from iostack.prepare.named import build_writer
from iostack.prepare.pieces import Pieces, Run
from iostack.prepare.reading import Reading, Source
from iostack.prepare.target import disk_errors, open_target
from iostack.prepare.types import KnownTypes
from iostack.prepare.work import Job

_TRIAL_PLACES = 8
_TRIAL_PLACE_BYTES = 128 << 10
_MOST_ROWS_OF_A_PLACE = 1024
_TRIAL = "trial-"
_TRIAL_LASTS_S = 3600.0  # in truth seconds; the cache folder may be shared by hosts with other clocks
_COUNT_THREADS = 8


@dataclass(frozen=True)
class Planned:
    """A conversion as planned. ``identity`` is all that decides the bytes of the shards, JSON-safe."""

    job: Job
    pieces: Pieces
    writer: Writer
    identity: Mapping[str, Any]
    estimated_bytes: int


def plan_conversion(
    source: Source,
    target_uri: str,
    *,
    to: str,
    target_options: Mapping[str, Any],
    writer_options: Mapping[str, Any],
    shard_bytes: int,
    max_bad_samples: int,
    verify: bool,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Planned:
    """Count the source and convert some of its rows for a trial; nothing is written to the target.

    Raises:
        PrepareError: the source is empty, the target lies in it, or more rows of the trial are bad than are allowed.
        UsageError: a column cannot be written.
    """
    writer = build_writer(to, writer_options)
    format_named(writer.format)
    staging = cache_folder(source.cache_dir) / "prepare" / object_id(target_uri)
    target = open_target(target_uri, target_options, staging)
    with source.open() as corpus:
        _refuse_overlap(corpus.uri, target.uri)
        counts = _counts(corpus, progress)
        total = int(sum(counts))
        if not total:
            raise PrepareError(f"{corpus.uri} holds no samples", hint="check the source: iostack inspect URI")
        row_bytes = max(1.0, float(corpus.manifest.bytes.sum()) / total)
        fingerprint = _fingerprint(corpus, counts)
    place_rows = int(_TRIAL_PLACE_BYTES / row_bytes)
    trial = _try_rows(Reading(source, row_bytes), counts, place_rows, max_bad_samples)
    if source.filters and not trial.samples:  # what they keep is rare, and has the columns of the others
        trial = _try_rows(Reading(replace(source, filters=()), row_bytes), counts, place_rows, total)
    layout = writer.layout(trial.samples, trial.types.known())
    bytes_per_row = _trial_bytes(writer, layout, trial, staging.parent) or row_bytes
    pieces = Pieces(counts, max(1, int(shard_bytes / bytes_per_row)))
    job = Job(
        source,
        len(counts),
        row_bytes,
        target_uri,
        dict(target_options),
        staging,
        to,
        dict(writer_options),
        layout,
        verify,
        max_bad_samples,
    )
    identity = {
        "source": fingerprint,
        "to": to,
        "columns": list(source.columns),
        "filters": find_filters(source.filters)[1],
        "transforms": find_transforms(source.transforms)[1],
        "shard_bytes": shard_bytes,
        **writer.identity,
        "layout": layout,
        "rows_per_piece": pieces.rows,
        "pieces": len(pieces),
    }
    return Planned(job, pieces, writer, identity, int(bytes_per_row * total))


def _refuse_overlap(source: str, target: str) -> None:
    if f"{target}/".startswith(f"{source}/") or f"{source}/".startswith(f"{target}/"):
        raise PrepareError(
            f"{target} and the source {source} lie in each other", hint="name a folder beside the source"
        )


def _counts(corpus: Corpus, progress: Callable[[int, int], None]) -> list[int]:
    """Return the samples of every shard; shards that the manifest does not count are opened."""
    if corpus.manifest.samples is not None:
        return [int(count) for count in corpus.manifest.samples]
    counts: dict[int, int] = {}

    def count(shard: int) -> int:
        return corpus.open_shard(shard).counts.samples

    def tick() -> None:
        progress(len(counts), corpus.num_shards)

    for shard, found in in_threads(count, range(corpus.num_shards), threads=_COUNT_THREADS, tick=tick):
        counts[shard] = found
    return [counts[shard] for shard in range(corpus.num_shards)]


def _fingerprint(corpus: Corpus, counts: Sequence[int]) -> str:
    """Return a hash of the names, sizes, versions and counts of all shards; whether they were indexed changes nothing."""
    shards = [corpus.manifest.shard(number) for number in range(corpus.num_shards)]
    counted = manifest_of(corpus.format.name, shards, [Counts(count) for count in counts]).fingerprint
    versions = "\0".join(info.etag for shard in shards for info in (shard.object, *shard.companions))
    return hashlib.blake2b(f"{counted}\0{versions}".encode(), digest_size=16).hexdigest()


@dataclass
class _Trial:
    """What some rows of the source gave: good samples, how many rows were read for them, bad ones left out, and types."""

    bad: BadRows
    samples: list[Sample] = field(default_factory=list)
    rows: int = 0
    types: KnownTypes = field(default_factory=KnownTypes)


def _try_rows(reading: Reading, counts: Sequence[int], place_rows: int, max_bad_samples: int) -> _Trial:
    """Read so many rows at each of some places spread over the source."""
    total = sum(counts)
    step = max(1, -(-total // _TRIAL_PLACES))
    place_rows = max(1, min(place_rows, step, _MOST_ROWS_OF_A_PLACE))
    trial = _Trial(BadRows(max_bad_samples))
    places = Pieces(counts, step)
    with reading.corpus as corpus:
        for start in range(0, total, step):
            for run in places.runs(start, min(start + place_rows, total)):
                reader = corpus.open_shard(run.shard)
                trial.types.add_shard(reader)
                _try_run(reading, reader, run, trial)
    return trial


def _try_run(reading: Reading, reader: ShardReader, run: Run, trial: _Trial) -> None:
    rows = range(run.start, run.stop)
    for row, sample in zip(rows, reader.read(rows), strict=True):
        before = dict(sample) if isinstance(sample, dict) else {}
        made = reading.made(sample, run.shard, row)
        if isinstance(made, Exception):  # if there are too many, nothing needs to be begun
            trial.bad.add(f"{reading.corpus.shard_name(run.shard)} row {row}", made)
            continue
        trial.rows += 1
        if made is not None:
            trial.samples.append(made)
            trial.types.add_sample(before, made)


def _trial_bytes(writer: Writer, layout: Layout, trial: _Trial, parent: Path) -> float:
    """Return the bytes that a row becomes in a shard, 0 if no sample is good; it is made in a folder below ``parent``."""
    samples = trial.samples
    with disk_errors(str(parent)):
        parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        _sweep_trials(parent)
        folder = Path(tempfile.mkdtemp(prefix=_TRIAL, dir=parent))
        try:
            sink = writer.open(folder, 0, layout)
            try:
                written = sink.write(samples, range(len(samples)))
            finally:
                sink.close()
            if all(isinstance(each, Exception) for each in written):
                return 0.0
            num_rows = trial.rows - sum(isinstance(each, Exception) for each in written)
            return sum((folder / name).stat().st_size for name in writer.names(0)) / num_rows
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _sweep_trials(parent: Path) -> None:
    """Remove what killed processes left."""
    for folder in parent.glob(f"{_TRIAL}*"):
        with suppress(FileNotFoundError):  # another process sweeps, too
            if time.time() - folder.stat().st_mtime > _TRIAL_LASTS_S:
                shutil.rmtree(folder, ignore_errors=True)
