"""Whole samples by row: read, transform, replace the bad ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

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
from iostack.stages import count, stage

_BAD_VALUES = (ValueError, TypeError, ArithmeticError, LookupError, NotImplementedError)
"""What pyarrow, datetime and the databases of time zones raise where a value has no Python object."""


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
        located, by_shard = task.located, task.located.by_shard()
        if not (self._transforming.is_needed or self._watch.is_careful):
            columns = self._read_columns(located, by_shard)
            if columns is not None:
                return columns, task.identities
        samples: list[Any] = [None] * len(located.shards)
        for shard, chosen in by_shard:
            rows_here = located.rows[chosen].tolist()
            read = self._read(shard, rows_here)
            if self._transforming.is_needed:
                read = self._transformed(chosen.tolist(), read, located.epochs[chosen].tolist(), shard, rows_here)
            for index, sample in zip(chosen.tolist(), read, strict=True):
                samples[index] = sample
        if not self._transforming.is_needed:
            count("decode", samples=len(samples), num_bytes=self._stored_bytes(by_shard))
        if bad := [index for index, sample in enumerate(samples) if isinstance(sample, Exception)]:
            return samples, self._replace(bad, samples, task)
        return samples, task.identities

    def _transformed(
        self,
        places: list[int],
        samples: Sequence[Sample | Exception],
        epochs: list[int],
        shard: int,
        rows: list[int],
    ) -> list[Sample | Exception]:
        """Return what the transforms make of samples of a shard, which will stand at ``places`` of the task."""
        transformed = []
        with stage("decode", samples=len(rows), num_bytes=self.residency.stored_bytes(shard, len(rows))):
            for place, sample, epoch, row in zip(places, samples, epochs, rows, strict=True):
                begin_sample(place)
                transformed.append(self._transforming.apply(sample, epoch, shard, row))
        return transformed

    def _read_columns(self, located: Rows, by_shard: Sequence[tuple[int, Int64s]]) -> dict[str, Column] | None:
        """Return the rows as columns; None where samples must be read, for one reason or another."""
        pieces = []
        for shard, chosen in by_shard:
            self._watch.reading(self.number, shard, -1)
            columns = self.residency.read_columns(shard, located.rows[chosen])
            if not columns:
                return None
            pieces.append(Piece(chosen, columns))
        with stage("decode", samples=len(located.rows), num_bytes=self._stored_bytes(by_shard)), suppress(*_BAD_VALUES):
            # A value that cannot be converted is found as a sample is made of its row.
            return joined(pieces)
        return None

    def _stored_bytes(self, by_shard: Sequence[tuple[int, Int64s]]) -> int:
        return sum(self.residency.stored_bytes(shard, len(chosen)) for shard, chosen in by_shard)

    def _replace(self, bad: list[int], samples: list[Any], task: RowsTask) -> Int64s:
        """Put substitutes in the place of the bad samples, and return the identities of all."""
        located, identities = task.located, task.identities.copy()
        for index in bad:
            error = samples[index]
            place = (int(located.epochs[index]), int(located.shards[index]), int(located.rows[index]))
            begin_sample(index)
            samples[index], shard, row = self._substitute(error, place, self._substitutes(task, index))
            if task.valid[index]:
                self._report(error, place[1:], (shard, row))
            identities[index] = row_identities(self.number, np.asarray([shard]), np.asarray([row]))[0]
        return identities

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
