"""The source of a conversion: its samples after filters, transforms and the choice of columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from iostack.corpus.contracts import Filter, Sample, TableFormat, Transform
from iostack.corpus.corpus import Corpus, open_corpus
from iostack.errors import SampleError
from iostack.loader.order.named import find_filters, find_transforms
from iostack.loader.transforming.filters import Filtering
from iostack.loader.transforming.transforms import Transforming
from iostack.prepare.pieces import Run

BLOCK_BYTES, BLOCK_ROWS = 8 << 20, 1024
"""Samples that are held at once."""


@dataclass(frozen=True)
class Source:
    """What is read: a corpus, and what is made of each of its samples."""

    uri: str
    format: str | None
    cache_dir: str | None
    options: Mapping[str, Any]
    transforms: Sequence[Any] = ()
    columns: Sequence[str] = ()
    filters: Sequence[Any] = ()

    def open(self) -> Corpus:
        """Open the corpus."""
        return open_corpus(self.uri, format=self.format, cache_dir=self.cache_dir, **self.options)


class Reading:
    """The samples of a source after its filters and transforms; a bad one is the error that makes it bad."""

    def __init__(self, source: Source, row_bytes: float) -> None:
        self.corpus = source.open()
        if source.columns and not (source.filters or source.transforms) and isinstance(self.corpus.format, TableFormat):
            self.corpus = self.corpus.with_columns(source.columns)
        filters, transforms = find_filters(source.filters)[0], find_transforms(source.transforms)[0]
        applied = _Applied(self.corpus, filters, transforms)
        self._filtering = Filtering(applied) if filters else None
        self._transforming = Transforming(applied)
        self._columns = tuple(source.columns)
        self._block_rows = max(1, min(BLOCK_ROWS, int(BLOCK_BYTES / max(row_bytes, 1))))

    def blocks(self, run: Run) -> Iterator[tuple[int, Sequence[Sample | Exception | None]]]:
        """Yield (first row, samples) of a run, in blocks of some MiB; None stands for what a filter leaves out."""
        reader = self.corpus.open_shard(run.shard)
        for start in range(run.start, run.stop, self._block_rows):
            rows = range(start, min(start + self._block_rows, run.stop))
            samples = reader.read(rows)
            yield start, [self.made(each, run.shard, row) for row, each in zip(rows, samples, strict=True)]

    def made(self, sample: Sample | Exception, shard: int, row: int) -> Sample | Exception | None:
        """Return what becomes of the sample of a row; None if a filter leaves it out."""
        if self._filtering is not None:
            verdict = self._filtering.judge(sample, shard, row)
            if verdict is not True:
                return verdict if isinstance(verdict, Exception) else None
        sample = self._transforming.apply(sample, 0, shard, row)
        if isinstance(sample, Exception) or not self._columns:
            return sample
        missing = [column for column in self._columns if column not in sample]
        if missing:
            return SampleError(f"no column {missing[0]!r}; there are {', '.join(map(str, sample))}")
        return {column: sample[column] for column in self._columns}


@dataclass(frozen=True)
class _Applied:
    """What is done to the samples of a corpus."""

    corpus: Corpus
    filters: Sequence[Filter]
    transforms: Sequence[Transform]
    seed: int = 0
