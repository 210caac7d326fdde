"""Work on samples as values: what is read, transformed and collated for one batch, or for one unit of text.

A task names shards and rows, and its result is a pure function of it; so it can be done in any thread or process, and
done again where that one died.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from iostack.batch_memory import BatchMemory, Places
from iostack.corpus.contracts import Column, Sample
from iostack.errors import UsageError
from iostack.loader.order.schedule import Int64s
from iostack.loader.tasks.batch_bytes import batch_bytes
from iostack.loader.tasks.collate import Columns, collate, collate_columns
from iostack.loader.tasks.pieces import Piece, joined, samples_of
from iostack.plan.indexed import Rows
from iostack.plan.units import Unit
from iostack.stages import count


class UnitRow(NamedTuple):
    """Where a row of a corpus without counts comes from: the output of a unit, which is the ``draw``-th of ``lane``."""

    unit: Unit
    output: int
    lane: int
    draw: int


@dataclass(frozen=True)
class UnitRows:
    """Where rows of a corpus without counts come from: int64 arrays of one length, ``which`` of the units is each row's.

    Most are never asked for: a ``UnitRow`` for each row of a batch cost a microsecond a row.
    """

    units: Sequence[Unit]
    which: Int64s
    outputs: Int64s
    lanes: Int64s
    draws: Int64s

    def __getitem__(self, index: int) -> UnitRow:
        unit = self.units[int(self.which[index])]
        return UnitRow(unit, int(self.outputs[index]), int(self.lanes[index]), int(self.draws[index]))

    def part(self, own: slice) -> UnitRows:
        """Return some of the rows."""
        return UnitRows(self.units, self.which[own], self.outputs[own], self.lanes[own], self.draws[own])


@dataclass(frozen=True)
class RowsTask:
    """The rows that the source ``number`` gives to a batch.

    Bad ones are reported where they are ``valid``. ``origins`` say what may stand in for each: positions of the source's
    plan, or for a corpus without counts the outputs of units. ``identities`` are those of the rows.
    """

    number: int
    located: Rows
    valid: NDArray[np.bool_]
    origins: Int64s | UnitRows
    identities: Int64s

    def part(self, own: slice) -> RowsTask:
        """Return the task of some of the rows."""
        located = Rows(self.located.epochs[own], self.located.shards[own], self.located.rows[own])
        origins = self.origins.part(own) if isinstance(self.origins, UnitRows) else self.origins[own]
        return RowsTask(self.number, located, self.valid[own], origins, self.identities[own])


@dataclass(frozen=True)
class BatchTask:
    """Successive batches of whole samples: the rows of each source, and the places they take in all of them.

    ``position`` is the first of the first batch; all have as many rows.
    """

    position: int
    valid: NDArray[np.bool_]
    parts: Sequence[tuple[Int64s, RowsTask]]
    num_batches: int = 1

    def __str__(self) -> str:
        if self.num_batches == 1:
            return f"the batch at position {self.position}"
        return f"the {self.num_batches} batches from position {self.position} on"

    def one_by_one(self, batch_size: int) -> Iterator[BatchTask]:
        """Yield a task for each of the batches, which stand ``batch_size`` positions apart."""
        rows = len(self.valid) // self.num_batches
        for number in range(self.num_batches):
            first = number * rows
            parts = []
            for places, task in self.parts:
                own = slice(*np.searchsorted(places, (first, first + rows)).tolist())
                if own.start < own.stop:
                    parts.append((places[own] - first, task.part(own)))
            yield BatchTask(self.position + number * batch_size, self.valid[first : first + rows], parts)


@dataclass(frozen=True)
class UnitTask:
    """One unit of the text of the source ``number``."""

    number: int
    unit: Unit

    def __str__(self) -> str:
        return f"unit {self.unit.number} of source {self.number}"


Task = BatchTask | UnitTask
ReadRows = Callable[[RowsTask], tuple[list[Sample] | dict[str, Column], Int64s]]
"""Returns the samples of a task, or its rows as columns, and their identities."""


def assemble(task: BatchTask, read: ReadRows, memory: BatchMemory) -> list[Columns]:
    """Return the columns of each batch, with ``valid`` and ``sample_ids``; transforms may make arrays in ``memory``.

    Raises:
        UsageError: the samples have a column of these names.
    """
    with memory.batch(len(task.valid)) as places:
        rows, identities = _read_all(task, read, places)
        identities = np.where(task.valid, identities, 0)
        num_rows = len(task.valid) // task.num_batches
        batches = []
        for first in range(0, len(task.valid), num_rows):
            own = slice(first, first + num_rows)
            batch = collate_columns(rows, own) if isinstance(rows, dict) else collate(rows[own], places)
            batches.append(_batch(batch, task.valid[own], identities[own]))
        return batches


def _batch(columns: Columns, valid: NDArray[np.bool_], identities: Int64s) -> Columns:
    count("assemble", samples=len(valid), num_bytes=batch_bytes(columns))
    if taken := sorted({"valid", "sample_ids"} & columns.keys()):
        raise UsageError(
            f"the samples have a column {taken[0]!r}, which the loader gives itself",
            hint="rename it with the transform 'rename'",
        )
    return columns | {"valid": valid, "sample_ids": identities}


def _read_all(task: BatchTask, read: ReadRows, memory: Places) -> tuple[list[Sample] | dict[str, Column], Int64s]:
    """Return all rows of a task, as columns where they were read so and are alike, and their identities."""
    if len(task.parts) == 1 and len(task.parts[0][0]) == len(task.valid):
        return read(task.parts[0][1])
    identities = np.zeros(len(task.valid), np.int64)
    parts: list[tuple[Int64s, list[Sample] | dict[str, Column]]] = []
    for places, rows in task.parts:
        memory.part = places.tolist()
        found, identities[places] = read(rows)
        parts.append((places, found))
    pieces = [Piece(places, found) for places, found in parts if isinstance(found, dict)]
    if len(pieces) == len(parts) and sum(len(piece.places) for piece in pieces) == len(task.valid):
        columns = joined(pieces)
        if columns is not None:
            return columns, identities
    samples: list[Sample] = [{} for _ in range(len(task.valid))]
    for places, found in parts:
        good = samples_of(found) if isinstance(found, dict) else found
        for place, sample in zip(places.tolist(), good, strict=True):
            samples[place] = sample
    return samples, identities
