"""Corpora as sources of whole samples: which rows each gives to a batch, planned now and read later by a thread."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from iostack.corpus.contracts import Sample
from iostack.errors import PlanError
from iostack.loader.planning import PlannedSource
from iostack.loader.reading import Reading
from iostack.loader.residency import Residency
from iostack.loader.rows import ChosenRow, RowReader, RowUnit, load_row_unit, substitutes_by_plan, substitutes_by_unit
from iostack.loader.schedule import Draws, Int64s
from iostack.loader.sources import IndexedSource, StreamedSource
from iostack.loader.state import Cursors
from iostack.loader.streams import UnitSource
from iostack.loader.tokens import locate
from iostack.plan.indexed import Rows


@dataclass(frozen=True)
class Part:
    """What one source reads for one batch: ``read()`` gives samples and identities for ``places``.

    ``shard_bytes`` are those of all shards that it reads.
    """

    places: Int64s
    shard_bytes: int
    read: Callable[[], tuple[list[Sample], Int64s]]


class IndexedRows(IndexedSource):
    """One corpus whose counts are known: rows by arithmetic."""

    def __init__(self, source: PlannedSource, reading: Reading) -> None:
        super().__init__(Residency(source.corpus, reading.lookahead_bytes))
        self._plan = source.indexed_plan(reading.plan.lanes)
        self._reader = RowReader(source, self.residency, reading.bad_samples)

    def plan(self, draws: Draws, valid: np.ndarray, cursors: Cursors) -> Part:
        """Return the part of one batch; nothing is read yet."""
        located = locate(self._plan, self.residency, draws)
        read = partial(
            self._reader.read, located, valid[draws.places], substitutes_by_plan(self._plan, draws.positions)
        )
        return Part(draws.places, _shard_bytes(self.residency, located), read)


class UnindexedRows(StreamedSource[RowUnit]):
    """One corpus whose counts are not known: lanes deal whole shards, rows are permuted within each."""

    def __init__(self, source: PlannedSource, reading: Reading) -> None:
        residency = Residency(source.corpus, reading.lookahead_bytes)
        self._reader = RowReader(source, residency, reading.bad_samples)
        self._load = partial(load_row_unit, residency, seed=source.seed)
        units = UnitSource(
            source.unit_plan(reading.plan.lanes),
            self._load,
            corpus=source.corpus,
            own_lanes=reading.own_lanes,
            epochs=reading.epochs,
            lookahead_units=max(1, int(reading.lookahead_bytes // max(source.unit_bytes, 1))),
            threads=reading.threads,
            begin=lambda outputs: None,
            why_nothing=lambda told: PlanError(
                f"{source.corpus.uri} holds no samples: all its shards are empty ({told})",
                hint="use a corpus that holds some",
            ),
        )
        super().__init__(source.number, residency, units)

    def plan(self, draws: Draws, valid: np.ndarray, cursors: Cursors) -> Part:
        """Return the part of one batch; waits until the shards are open, reads no sample yet."""
        chosen: list[ChosenRow] = []
        for place, unit, output, is_valid, lane, cursor in self.take(draws):
            valid[place] = is_valid
            chosen.append(ChosenRow(unit, output, lane, cursor[0]))
            cursors.setdefault(self.number, {})[lane] = cursor
        located = Rows(
            epochs=np.asarray([row.unit.unit.epoch for row in chosen], np.int64),
            shards=np.asarray([row.unit.unit.shard for row in chosen], np.int64),
            rows=np.asarray([row.unit.order[row.output] for row in chosen], np.int64),
        )
        substitutes = substitutes_by_unit(chosen, self._units.units, self._load)
        read = partial(self._reader.read, located, valid[draws.places], substitutes)
        return Part(draws.places, _shard_bytes(self.residency, located), read)


def _shard_bytes(residency: Residency, located: Rows) -> int:
    return int(residency.corpus.manifest.bytes[np.unique(located.shards)].sum())
