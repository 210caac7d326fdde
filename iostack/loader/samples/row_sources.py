"""Corpora as sources of whole samples: which rows each gives to a batch, planned now and read later by a thread."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np

from iostack.loader.ahead.lookahead import LookAhead
from iostack.loader.ahead.residency import Residency
from iostack.loader.ahead.streams import UnitSource
from iostack.loader.order.planned import PlannedSource
from iostack.loader.order.schedule import Draws, Int64s
from iostack.loader.reading import Reading
from iostack.loader.samples.row_units import RowUnit, RowUnits
from iostack.loader.samples.rows import RowReader
from iostack.loader.sequences.tokens import locate
from iostack.loader.sources import IndexedSource, StreamedSource
from iostack.loader.state import Cursors
from iostack.loader.tasks.task import RowsTask, UnitRow
from iostack.plan.indexed import Rows


@dataclass(frozen=True)
class Part:
    """What one source reads for the ``places`` of one batch; ``shard_bytes`` are those of all shards that it reads."""

    places: Int64s
    shard_bytes: int
    task: RowsTask


class IndexedRows(IndexedSource):
    """One corpus whose counts are known: rows by arithmetic."""

    def __init__(self, source: PlannedSource, reading: Reading) -> None:
        super().__init__(Residency(source.corpus, reading.lookahead_bytes, reading.meter))
        self._plan = source.indexed_plan(reading.plan.lanes)
        self.number = source.number
        self.reader = RowReader(source, self.residency, reading.bad_samples, reading.watch, self._plan)

    def plan(self, draws: Draws, valid: np.ndarray, cursors: Cursors) -> Part:
        """Return the part of one batch; nothing is read yet."""
        located = locate(self._plan, self.residency, draws)
        task = RowsTask(self.number, located, valid[draws.places], draws.positions)
        return Part(draws.places, _shard_bytes(self.residency, located), task)


class UnitRows(StreamedSource[RowUnit]):
    """One corpus that is read by units: its counts are not known, or filters choose. Rows are permuted within each."""

    def __init__(self, source: PlannedSource, reading: Reading) -> None:
        residency = Residency(source.corpus, reading.lookahead_bytes, reading.meter)
        plan = source.unit_plan(reading.plan.lanes)
        self.reader = RowReader(source, residency, reading.bad_samples, reading.watch, plan)
        rows = RowUnits(source, residency)
        units = UnitSource(
            plan,
            rows.load,
            corpus=source.corpus,
            meter=reading.meter,
            own_lanes=reading.own_lanes,
            epochs=reading.epochs,
            lookahead=LookAhead(reading.lookahead_bytes, source.unit_bytes),
            threads=reading.unit_threads,
            slack_s=reading.slack_s,
            begin=partial(rows.report_bad_rows, bad_samples=reading.bad_samples),
            why_nothing=rows.why_nothing,
            most_in_vain=source.most_units_in_vain,
        )
        super().__init__(source.number, residency, units)

    def plan(self, draws: Draws, valid: np.ndarray, cursors: Cursors) -> Part:
        """Return the part of one batch; waits until the shards are open, reads no sample yet."""
        chosen: list[tuple[RowUnit, UnitRow]] = []
        for place, unit, output, is_valid, lane, cursor in self.take(draws):
            valid[place] = is_valid
            chosen.append((unit, UnitRow(unit.unit, output, lane, cursor[0])))
            cursors.setdefault(self.number, {})[lane] = cursor
        located = Rows(
            epochs=np.asarray([unit.unit.epoch for unit, _ in chosen], np.int64),
            shards=np.asarray([unit.unit.shard for unit, _ in chosen], np.int64),
            rows=np.asarray([unit.order[origin.output] for unit, origin in chosen], np.int64),
        )
        task = RowsTask(self.number, located, valid[draws.places], [origin for _, origin in chosen])
        return Part(draws.places, _shard_bytes(self.residency, located), task)


def _shard_bytes(residency: Residency, located: Rows) -> int:
    return int(residency.corpus.manifest.bytes[[shard for shard, _ in located.by_shard()]].sum())
