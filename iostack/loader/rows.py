"""Whole samples by row: read, transform, replace the bad ones, collate into a batch of columns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from iostack.corpus.contracts import Sample
from iostack.errors import IostackError, PluginError, SampleError
from iostack.loader.bad_samples import BadSamples, nothing_is_good
from iostack.loader.planning import PlannedSource
from iostack.loader.residency import Residency
from iostack.loader.schedule import Int64s
from iostack.loader.transforming import Transforming
from iostack.plan.identity import row_identities
from iostack.plan.indexed import IndexedPlan, Rows
from iostack.plan.keyed import derive_key, permutation
from iostack.plan.units import Unit, UnitPlan

_ROW_ORDER = 6
Substitutes = Callable[[int], Iterator[tuple[int, int]]]
"""What may stand in for the i-th sample of a batch, as (shard, row), best first."""


class RowReader:
    """Reads samples of one corpus with their transforms applied; thread-safe."""

    def __init__(self, source: PlannedSource, residency: Residency, bad_samples: BadSamples) -> None:
        self.residency = residency
        self.number = source.number
        self._transforming = Transforming(source)
        self._bad_samples = bad_samples

    def read(self, located: Rows, valid: NDArray[np.bool_], substitutes: Substitutes) -> tuple[list[Sample], Int64s]:
        """Return the samples at ``located`` and their identities; bad ones are reported where they are ``valid``."""
        samples: list[Sample | Exception] = [SampleError("not read")] * len(located.shards)
        for shard in np.unique(located.shards).tolist():
            (chosen,) = np.nonzero(located.shards == shard)
            rows_here = located.rows[chosen].tolist()
            for index, row, sample in zip(chosen.tolist(), rows_here, self._read(shard, rows_here), strict=True):
                samples[index] = self._transforming.apply(sample, int(located.epochs[index]), shard, row)
        shards, rows = located.shards.copy(), located.rows.copy()
        good: list[Sample] = []
        for index, sample in enumerate(samples):
            if isinstance(sample, Exception):
                bad = sample
                place = (int(located.epochs[index]), int(shards[index]), int(rows[index]))
                sample, other_shard, other_row = self._substitute(bad, place, substitutes(index))
                if valid[index]:
                    self._report(bad, (shards[index], rows[index]), (other_shard, other_row))
                shards[index], rows[index] = other_shard, other_row
            good.append(sample)
        return good, row_identities(self.number, shards, rows)

    def _read(self, shard: int, rows: list[int]) -> Sequence[Sample | Exception]:
        reader = self.residency.reader(shard)
        try:
            return reader.read(rows)
        except IostackError:
            raise
        except Exception as error:
            name = self.residency.corpus.shard_name(shard)
            raise PluginError(f"the reader of {name} failed on rows {rows}: {type(error).__name__}: {error}") from error

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
            sample = self._transforming.apply(self._read(other_shard, [other_row])[0], epoch, other_shard, other_row)
            if not isinstance(sample, Exception):
                return sample, other_shard, other_row
        raise nothing_is_good(f"the window around {name(shard)} row {row}", bad) from bad


class RowUnit:
    """The rows of one unit in permuted order, unread: for corpora whose counts are not known."""

    def __init__(self, unit: Unit, order: Int64s) -> None:
        self.unit = unit
        self.order = order

    def __len__(self) -> int:
        return len(self.order)


def load_row_unit(residency: Residency, unit: Unit, *, seed: int) -> RowUnit:
    """Return the permuted rows of a unit that is a whole shard; opens the shard and so learns its count."""
    num_rows = residency.reader(unit.shard).counts.samples
    return RowUnit(unit, permutation(derive_key(seed, _ROW_ORDER, unit.epoch, unit.number), num_rows))


class ChosenRow(NamedTuple):
    """One row of a batch: the output of a unit, which is the ``draw``-th of ``lane``."""

    unit: RowUnit
    output: int
    lane: int
    draw: int


def substitutes_by_plan(plan: IndexedPlan, positions: Int64s) -> Substitutes:
    """Return the substitutes of the i-th of ``positions`` of a source's plan."""

    def substitutes(index: int) -> Iterator[tuple[int, int]]:
        rows = plan.substitutes(int(positions[index]))
        return zip(rows.shards.tolist(), rows.rows.tolist(), strict=True)

    return substitutes


def substitutes_by_unit(chosen: Sequence[ChosenRow], units: UnitPlan, load: Callable[[Unit], RowUnit]) -> Substitutes:
    """Return the substitutes of the i-th chosen row: the outputs after it around its unit, then those of other units.

    A unit may hold nothing good, even a single row; so it borrows from the units after it, around their window.
    """

    def substitutes(index: int) -> Iterator[tuple[int, int]]:
        unit, output, lane, draw = chosen[index]
        for row in np.roll(unit.order, -output)[1:].tolist():
            yield unit.unit.shard, row
        for other in units.substitutes(lane, draw):
            for row in load(other).order.tolist():
                yield other.shard, row

    return substitutes


def collate(samples: Sequence[Sample]) -> dict[str, Any]:
    """Return one batch of columns: tensors where all values are numbers, or arrays of one shape and dtype, else lists.

    A column that a sample lacks holds None in its place.
    """
    names = list(dict.fromkeys(name for sample in samples for name in sample))
    return {name: _collate_column([sample.get(name) for sample in samples]) for name in names}


def _collate_column(values: list[Any]) -> Any:
    first = values[0]
    if isinstance(first, torch.Tensor):
        same = all(
            isinstance(value, torch.Tensor) and (value.shape, value.dtype) == (first.shape, first.dtype)
            for value in values
        )
        return torch.stack(values) if same else values
    if isinstance(first, np.ndarray):
        same = first.dtype.kind in "biuf" and all(
            isinstance(value, np.ndarray) and (value.shape, value.dtype) == (first.shape, first.dtype)
            for value in values
        )
        return torch.from_numpy(np.stack(values)) if same else values
    if all(type(value) is bool for value in values):
        return torch.tensor(values)
    if all(type(value) is int and -(1 << 63) <= value < 1 << 63 for value in values):
        return torch.tensor(values)
    if all(type(value) is float for value in values):
        return torch.tensor(values, dtype=torch.float64)
    return values
