"""Whole samples by row: read, transform, replace the bad ones, collate into a batch of columns."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from iostack.corpus.contracts import Sample, Transform
from iostack.errors import IostackError, PluginError, SampleError
from iostack.loader.bad_samples import BadSamples
from iostack.loader.residency import Residency
from iostack.loader.schedule import Int64s
from iostack.loader.transforming import transformed
from iostack.plan.identity import row_identities
from iostack.plan.indexed import IndexedPlan, Rows
from iostack.plan.keyed import derive_key, permutation
from iostack.plan.units import Unit

_ROW_ORDER = 6


class RowReader:
    """Reads samples of one corpus with their transforms applied; thread-safe."""

    def __init__(
        self, residency: Residency, transforms: Sequence[Transform], bad_samples: BadSamples, number: int
    ) -> None:
        self.residency = residency
        self.number = number
        self._transforms = transforms
        self._bad_samples = bad_samples
        self._lock = threading.Lock()

    def read(
        self, located: Rows, valid: NDArray[np.bool_], substitutes: Callable[[int], Rows]
    ) -> tuple[list[Sample], Int64s]:
        """Return the samples at ``located`` and their identities; bad ones are reported where they are ``valid``.

        ``substitutes(i)`` is called for a bad i-th sample; it returns what may stand in for it, best first.
        """
        samples: list[Sample | Exception] = [SampleError("not read")] * len(located.shards)
        for shard in np.unique(located.shards).tolist():
            (chosen,) = np.nonzero(located.shards == shard)
            for index, sample in zip(chosen.tolist(), self._read(shard, located.rows[chosen].tolist()), strict=True):
                samples[index] = transformed(sample, self._transforms)
        shards, rows = located.shards.copy(), located.rows.copy()
        good: list[Sample] = []
        for index, sample in enumerate(samples):
            if isinstance(sample, Exception):
                with self._lock:
                    choices = substitutes(index)
                bad = sample
                sample, other_shard, other_row = self._substitute(bad, shards[index], rows[index], choices)
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

    def _substitute(self, bad: Exception, shard: int, row: int, choices: Rows) -> tuple[Sample, int, int]:
        name = self.residency.corpus.shard_name
        for tried, (other_shard, other_row) in enumerate(zip(choices.shards.tolist(), choices.rows.tolist()), start=1):
            self._bad_samples.refuse_in_a_row(tried, f"{name(shard)} row {row}", bad)
            sample = transformed(self._read(other_shard, [other_row])[0], self._transforms)
            if not isinstance(sample, Exception):
                return sample, other_shard, other_row
        raise self._bad_samples.nothing_left(f"the window around {name(shard)} row {row}", bad) from bad


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


def substitutes_by_plan(plan: IndexedPlan, positions: Int64s) -> Callable[[int], Rows]:
    """Return the substitutes of the i-th of ``positions`` of a source's plan."""
    return lambda index: plan.substitutes(int(positions[index]))


def substitutes_by_unit(chosen: Sequence[tuple[RowUnit, int]]) -> Callable[[int], Rows]:
    """Return the substitutes of the i-th of (unit, output): the outputs after it, around the unit."""

    def substitutes(index: int) -> Rows:
        unit, output = chosen[index]
        rows = np.roll(unit.order, -output)[1:]
        return Rows(np.full_like(rows, unit.unit.epoch), np.full_like(rows, unit.unit.shard), rows)

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
