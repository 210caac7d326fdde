"""A whole conversion: plan the pieces, lock the target, make what is missing, write the manifest.

source ──count──> pieces ──probe──> layout, rows per shard ──lock, journal──> engine.map(pieces) ──> manifest
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from iostack.corpus.contracts import Counts
from iostack.corpus.detect import detect
from iostack.corpus.manifest import SIDECAR, manifest_of
from iostack.corpus.origins import open_origin
from iostack.errors import PrepareError
from iostack.prepare.bad_rows import too_many_bad
from iostack.prepare.journal import FINISHED, PLAN, Finished, Journal
from iostack.prepare.lock import target_lock
from iostack.prepare.named import build_engine, build_writer
from iostack.prepare.planning import Planned
from iostack.prepare.target import Target, open_target, sweep
from iostack.prepare.work import Job

Progress = Callable[["Converted"], None]
"""Called with what is done so far, from one thread, about once a second and after every piece."""


@dataclass
class Converted:
    """How far a conversion is. Those of ``now`` were made by this run, the rest by runs before it."""

    pieces: int
    finished: int = 0
    samples: int = 0
    tokens: int | None = None
    bytes: int = 0
    shards: int = 0
    num_filtered: int = 0
    num_bad: int = 0
    bad: list[str] = field(default_factory=list)
    pieces_now: int = 0
    shards_now: int = 0
    samples_now: int = 0
    bytes_now: int = 0
    lost: int = 0
    began: float = field(default_factory=time.monotonic)
    fingerprint: str = ""

    @property
    def wall_s(self) -> float:
        """Seconds since this run began."""
        return max(time.monotonic() - self.began, 1e-9)

    def add(self, done: Finished, *, is_new: bool) -> None:
        """Count one finished piece."""
        self.finished += 1
        self.samples += done.samples
        self.bytes += done.bytes
        self.shards += bool(done.files)
        self.num_filtered += done.num_filtered
        self.num_bad += done.num_bad
        self.bad += done.bad
        if done.tokens is not None:
            self.tokens = (self.tokens or 0) + done.tokens
        if is_new:
            self.pieces_now += 1
            self.shards_now += bool(done.files)
            self.samples_now += done.samples
            self.bytes_now += done.bytes


def convert(
    planned: Planned,
    *,
    engine: str,
    engine_options: Mapping[str, Any],
    overwrite: bool,
    progress: Progress,
) -> Converted:
    """Make all pieces that are not finished, and the manifest. What is finished stays, whatever happens.

    Raises:
        PrepareError: the target holds something else, or is in use; the disk is full; too many samples are bad.
    """
    job = planned.job
    target = open_target(job.target_uri, job.target_options, job.staging)
    with target_lock(target) as renew:
        sweep(target.staging)
        journal = Journal(target)
        if overwrite:
            _remove(target, journal)
            journal = Journal(target)
        done = Converted(len(planned.pieces))
        if journal.plan is None:
            _refuse_strangers(target)
        journal.begin(planned.identity)
        done.lost = len(journal.keep_existing(target.sizes()))
        for finished in journal.finished.values():
            done.add(finished, is_new=False)
        _refuse_bad(done, job)
        try:
            _make_missing(planned, journal, done, engine, engine_options, renew, progress)
            done.fingerprint = _finish(target, planned, journal)
        finally:
            journal.save()
            # A piece that nobody waits for any more may still be writing there: the next run removes what is left now.
            shutil.rmtree(target.staging, ignore_errors=True)
    return done


def _make_missing(
    planned: Planned,
    journal: Journal,
    done: Converted,
    engine: str,
    engine_options: Mapping[str, Any],
    renew: Callable[[], None],
    progress: Progress,
) -> None:
    missing = [number for number in range(len(planned.pieces)) if number not in journal.finished]
    if not missing:
        return

    def tick() -> None:
        renew()
        progress(done)

    running = build_engine(engine, engine_options)
    try:
        pieces = (planned.pieces[number] for number in missing)
        for finished in running.map(planned.job.worker, pieces, tick):
            journal.add(finished)
            done.add(finished, is_new=True)
            tick()
            _refuse_bad(done, planned.job)
    finally:
        running.close()


def _refuse_bad(done: Converted, job: Job) -> None:
    if done.num_bad > job.max_bad_samples:
        raise too_many_bad(done.num_bad, job.max_bad_samples, done.bad[0])


def _refuse_strangers(target: Target) -> None:
    if found := sorted(target.sizes()):
        raise PrepareError(
            f"{target.uri} holds {len(found):,} files that iostack prepare did not make, such as {found[0]}",
            hint="choose a folder that is empty or not there yet",
        )


def _remove(target: Target, journal: Journal) -> None:
    """Remove what a former conversion made, and nothing else."""
    if journal.plan is None:
        return
    made = {file.name for finished in journal.finished.values() for file in finished.files}
    try:
        plan = journal.plan
        writer = build_writer(plan["to"], {"compress": plan["compress"]} if "compress" in plan else {})
        made.update(name for number in range(int(plan["pieces"])) for name in writer.names(number))
        made.update(writer.summary(plan["layout"], []))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise PrepareError(
            f"{target.uri}/{PLAN} is damaged: {type(error).__name__}: {error}", hint="remove the folder by hand"
        ) from error
    for path in made & target.sizes().keys():
        target.delete(path)
    for path in (FINISHED, SIDECAR, PLAN):
        target.delete(path)


def _finish(target: Target, planned: Planned, journal: Journal) -> str:
    """Write what the format wants beside its shards, and the manifest; return the fingerprint."""
    job, writer = planned.job, planned.writer
    shards = [done for _, done in sorted(journal.finished.items()) if done.files]
    if not shards:
        raise PrepareError(
            f"no sample of {job.source.uri} was left to write", hint="check the filters, the transforms and the source"
        )
    listed = [(done.files[0].name, done.files[0].bytes, done.samples) for done in shards]
    for name, data in writer.summary(job.layout, listed).items():
        target.write(name, data)
    counts = {done.files[0].name: Counts(done.samples, done.tokens) for done in shards}
    origin = open_origin(job.target_uri, job.target_options)
    found = detect(origin.list(), format=writer.format, uri=target.uri).shards
    unknown = {shard.object.path for shard in found} ^ counts.keys()
    if unknown:
        raise PrepareError(
            f"{target.uri}: {min(unknown)} is no shard of this conversion, or vanished from it",
            hint="let nobody else write there, and run the same command again",
        )
    manifest = manifest_of(writer.format, found, [counts[shard.object.path] for shard in found])
    manifest = manifest.with_vocab_size(writer.identity.get("vocab_size"))
    target.write(SIDECAR, manifest.to_bytes())
    return manifest.fingerprint
