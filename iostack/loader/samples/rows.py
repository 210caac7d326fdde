"""Whole samples by row: read, transform, replace the bad ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

from iostack.batch_memory import begin_sample
from iostack.corpus.contracts import Column, Sample
from iostack.loader.ahead.residency import Residency
from iostack.loader.order.planned import PlannedSource
from iostack.loader.order.schedule import Int64s
from iostack.loader.samples.row_units import RowUnits, substitutes_by_unit
from iostack.loader.tasks.pieces import Piece, joined
from iostack.loader.tasks.task import RowsTask, UnitRow
from iostack.loader.transforming.bad_samples import BadSamples, nothing_is_good
from iostack.loader.transforming.transforms import Transforming
from iostack.loader.transforming.watch import Watch, read_watched
from iostack.plan.identity import row_identities
from iostack.plan.indexed import IndexedPlan, Rows
from iostack.plan.units import UnitPlan
from iostack.stages import stage

_BAD_VALUES = (ValueError, TypeError, ArithmeticError, NotImplementedError)
"""What pyarrow and datetime raise where a value has no Python object."""


class RowReader:
    """Reads samples of one corpus with their transforms applied; thread-safe."""

    def __init__(
        self,
        source: PlannedSource,
        residency: Residency,
        bad_samples: BadSamples,
        watch: Watch,
        plan: IndexedPlan | UnitPlan,
    ) -> None:
        self.residency = residency
        self.number = source.number
        self._transforming = Transforming(source, number=source.number, watch=watch)
        self._watch = watch
        self._bad_samples = bad_samples
        self._plan = plan
        self._load = RowUnits(source, residency).load

    def read(self, task: RowsTask) -> tuple[list[Sample] | dict[str, Column], Int64s]:
        """Return the samples of the task, and their identities; bad ones are reported where they are valid.

        Rows come as columns where their reader can give them so, none is bad, and nothing is to be done with samples.
        """
        located = task.located
        if not (self._transforming.is_needed or self._watch.is_careful):
            columns = self._read_columns(located)
            if columns is not None:
                return columns, row_identities(self.number, located.shards, located.rows)
        samples: list[Any] = [None] * len(located.shards)
        for shard, chosen in located.by_shard():
            rows_here = located.rows[chosen].tolist()
            read = self._read(shard, rows_here)
            with stage("decode", samples=len(rows_here), num_bytes=self.residency.stored_bytes(shard, len(rows_here))):
                if self._transforming.is_needed:
                    epochs = located.epochs[chosen].tolist()
                    read = [
                        self._transformed(index, each, epoch, shard, row)
                        for index, each, epoch, row in zip(chosen.tolist(), read, epochs, rows_here)
                    ]
            for index, sample in zip(chosen.tolist(), read, strict=True):
                samples[index] = sample
        if bad := [index for index, sample in enumerate(samples) if isinstance(sample, Exception)]:
            located = self._replace(bad, samples, task)
        return samples, row_identities(self.number, located.shards, located.rows)

    def _read_columns(self, located: Rows) -> dict[str, Column] | None:
        """Return the rows as columns; None where samples must be read, for one reason or another."""
        pieces, num_bytes = [], 0
        for shard, chosen in located.by_shard():
            self._watch.reading(self.number, shard, -1)
            columns = self.residency.read_columns(shard, located.rows[chosen])
            if not columns:
                return None
            pieces.append(Piece(chosen, columns))
            num_bytes += self.residency.stored_bytes(shard, len(chosen))
        with stage("decode", samples=len(located.rows), num_bytes=num_bytes), suppress(*_BAD_VALUES):
            # A value that cannot be converted is found as a sample is made of its row.
            return joined(pieces)
        return None

    def _transformed(
        self, index: int, sample: Sample | Exception, epoch: int, shard: int, row: int
    ) -> Sample | Exception:
        begin_sample(index)
        return self._transforming.apply(sample, epoch, shard, row)

    def _replace(self, bad: list[int], samples: list[Any], task: RowsTask) -> Rows:
        """Put substitutes in the place of the bad samples, and return where all samples now stand."""
        located = task.located
        shards, rows = located.shards.copy(), located.rows.copy()
        for index in bad:
            error = samples[index]
            place = (int(located.epochs[index]), int(shards[index]), int(rows[index]))
            begin_sample(index)
            samples[index], *instead = self._substitute(error, place, self._substitutes(task, index))
            if task.valid[index]:
                self._report(error, place[1:], (instead[0], instead[1]))
            shards[index], rows[index] = instead
        return Rows(located.epochs, shards, rows)

    def _read(self, shard: int, rows: list[int]) -> Sequence[Sample | Exception]:
        self._watch.reading(self.number, shard, -1)
        return self.residency.read_rows(
            shard, rows, lambda read: read_watched(read, self._watch, self.number, shard, rows)
        )

    def _report(self, bad: Exception, place: tuple[int, int], substitute: tuple[int, int]) -> None:
        name = self.residency.corpus.shard_name
        where, instead = (f"{name(shard)} row {row}" for shard, row in (place, substitute))
        self._bad_samples.substituted(where, bad, instead)

    def _substitute(
        self, bad: Exception, place: tuple[int, int, int], choices: Iterator[tuple[int, int]]
    ) -> tuple[Sample, int, int]:
        epoch, shard, row = place
        name = self.residency.corpus.shard_name
        for tried, (other_shard, other_row) in enumerate(choices, start=1):
            self._bad_samples.refuse_in_a_row(tried, f"{name(shard)} row {row}", bad)
            read = self._read(other_shard, [other_row])[0]
            with stage("decode", samples=1, num_bytes=self.residency.stored_bytes(other_shard, 1)):
                sample = self._transforming.apply(read, epoch, other_shard, other_row)
            if not isinstance(sample, Exception):
                return sample, other_shard, other_row
        raise nothing_is_good(f"the window around {name(shard)} row {row}", bad) from bad

    def _substitutes(self, task: RowsTask, index: int) -> Iterator[tuple[int, int]]:
        """Return what may stand in for a row of the task, as (shard, row), best first."""
        origin = task.origins[index]
        if isinstance(self._plan, UnitPlan):
            assert isinstance(origin, UnitRow)
            return substitutes_by_unit(origin, self._plan, self._load)
        assert not isinstance(origin, UnitRow)
        rows = self._plan.substitutes(int(origin))
        return zip(rows.shards.tolist(), rows.rows.tolist(), strict=True)
