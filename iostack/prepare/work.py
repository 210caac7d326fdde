"""One piece, from rows of the source to a verified shard in place. Runs in the processes of an engine.

rows ──read──> samples ──filters, transforms, columns──> sink ──close──> files ──read again, compare──> moved into the target
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from iostack.corpus.contracts import Sample, ShardReader
from iostack.corpus.corpus import open_corpus
from iostack.corpus.detect import format_named
from iostack.corpus.origins import object_uri
from iostack.errors import IostackError, PluginError, PrepareError
from iostack.prepare.bad_rows import BadRows
from iostack.prepare.contracts import Layout, ShardSink
from iostack.prepare.digest import SamplesDigest
from iostack.prepare.journal import Finished, WrittenFile
from iostack.prepare.named import build_writer
from iostack.prepare.pieces import Piece
from iostack.prepare.reading import BLOCK_BYTES, BLOCK_ROWS, Reading, Source
from iostack.prepare.target import disk_errors, open_target

_DIGEST_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class Job:
    """All that a process needs to make any piece; pickles."""

    source: Source
    source_shards: int
    row_bytes: float
    """Mean bytes of a row of the source, as stored: decides how many are held at once."""
    target_uri: str
    target_options: Mapping[str, Any]
    staging: Path
    to: str
    writer_options: Mapping[str, Any]
    layout: Layout
    verify: bool
    max_bad_samples: int

    def worker(self) -> PieceMaker:
        """Return what makes pieces, in the process that shall do it."""
        return PieceMaker(self)


@dataclass
class _Tally:
    """What one piece gave so far."""

    bad: BadRows
    holds_tokens: bool
    digest: SamplesDigest | None
    samples: int = 0
    tokens: int | None = None
    num_filtered: int = 0

    def good(self, sample: Sample) -> None:
        self.samples += 1
        if self.digest is not None:
            self.digest.add(sample)
        if self.holds_tokens:
            self.tokens = (self.tokens or 0) + len(sample["tokens"])


class PieceMaker:
    """Makes pieces, one at a time; what it opens serves them all."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._reading = Reading(job.source, job.row_bytes)
        if self._reading.corpus.num_shards != job.source_shards:
            raise PrepareError(
                f"{self._reading.corpus.uri} has {self._reading.corpus.num_shards:,} shards where it had {job.source_shards:,}",
                hint="start again when nobody changes the source",
            )
        self._target = open_target(job.target_uri, job.target_options, job.staging)
        self._writer = build_writer(job.to, job.writer_options)
        self._holds_tokens = format_named(self._writer.format).holds_tokens

    def __call__(self, piece: Piece) -> Finished:
        """Make one piece; idempotent."""
        folder = self._target.staging / f"piece-{piece.number}"
        with disk_errors(str(self._target.staging)):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        try:
            tally = self._write(piece, folder)
            files = self._files(piece, folder) if tally.samples else ()
            if files and tally.digest is not None:
                self._verify(piece, folder, tally.digest)
            for file in files:
                self._target.take(folder / file.name, file.name)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return Finished(
            piece.number,
            piece.num_rows,
            tally.samples,
            tally.tokens,
            files,
            tally.bad.count,
            tuple(tally.bad.named),
            tally.num_filtered,
        )

    def _write(self, piece: Piece, folder: Path) -> _Tally:
        digest = SamplesDigest() if self._job.verify else None
        tally = _Tally(BadRows(self._job.max_bad_samples), self._holds_tokens, digest)
        with disk_errors(str(self._target.staging)):
            sink = self._writer.open(folder, piece.number, self._job.layout)
            try:
                number = piece.first_row
                for run in piece.runs:
                    for first, samples in self._reading.blocks(run):
                        self._append(sink, samples, run.shard, first, number, tally)
                        number += len(samples)
            finally:
                sink.close()
        return tally

    def _append(
        self,
        sink: ShardSink,
        samples: Sequence[Sample | Exception | None],
        shard: int,
        row: int,
        number: int,
        tally: _Tally,
    ) -> None:
        """Write a block of samples, whose first is ``row`` of ``shard`` and ``number`` of the source."""
        good = [(at, sample) for at, sample in enumerate(samples) if isinstance(sample, dict)]
        results = self._written(sink, [sample for _, sample in good], [number + at for at, _ in good])
        written: list[Sample | Exception | None] = list(samples)
        for (at, _), result in zip(good, results, strict=True):
            written[at] = result
        for at, each in enumerate(written):
            if each is None:
                tally.num_filtered += 1
            elif isinstance(each, Exception):
                tally.bad.add(f"{self._reading.corpus.shard_name(shard)} row {row + at}", each)
            else:
                tally.good(each)

    def _written(self, sink: ShardSink, samples: Sequence[Sample], rows: Sequence[int]) -> Sequence[Sample | Exception]:
        if not samples:
            return []
        try:
            return sink.write(samples, rows)
        except (IostackError, OSError):
            raise
        except Exception as error:
            raise PluginError(
                f"the writer {self._job.to!r} failed on rows {rows[0]:,} to {rows[-1]:,} of {self._job.source.uri}: "
                f"{type(error).__name__}: {error}",
                hint="a writer answers a bad sample with a SampleError; see docs/plugins.md",
            ) from error

    def _files(self, piece: Piece, folder: Path) -> tuple[WrittenFile, ...]:
        return tuple(
            WrittenFile(name, (folder / name).stat().st_size, _digest(folder / name))
            for name in self._writer.names(piece.number)
        )

    def _verify(self, piece: Piece, folder: Path, wanted: SamplesDigest) -> None:
        """Read the shard with its format's own reader and compare all samples with those that were written.

        Raises:
            PrepareError: they differ.
        """
        first = self._writer.names(piece.number)[0]
        written = [(first, (folder / first).stat().st_size, wanted.num_samples)]
        for name, data in self._writer.summary(self._job.layout, written).items():
            (folder / name).write_bytes(data)
        with open_corpus(folder, format=self._writer.format, cache_dir=folder / ".cache") as corpus:
            read = SamplesDigest()
            for shard in range(corpus.num_shards):
                _add_all(corpus.open_shard(shard), read, int(BLOCK_BYTES / max(self._job.row_bytes, 1)))
        if (read.num_samples, read.value()) != (wanted.num_samples, wanted.value()):
            raise PrepareError(
                f"{object_uri(self._target.uri, first)}: {read.num_samples:,} samples were read back that are not the "
                f"{wanted.num_samples:,} that were written",
                hint="check the disk and the memory of this machine; the shard was not kept",
            )


def _add_all(reader: ShardReader, digest: SamplesDigest, block_rows: int) -> None:
    block_rows = max(1, min(BLOCK_ROWS, block_rows))
    for start in range(0, reader.counts.samples, block_rows):
        for sample in reader.read(range(start, min(start + block_rows, reader.counts.samples))):
            if isinstance(sample, Exception):
                raise PrepareError(f"a sample that was just written cannot be read back: {sample}") from sample
            digest.add(sample)


def _digest(file: Path) -> str:
    hasher = xxhash.xxh3_128()
    with file.open("rb") as data:
        while block := data.read(_DIGEST_BLOCK_BYTES):
            hasher.update(block)
    return str(hasher.hexdigest())
