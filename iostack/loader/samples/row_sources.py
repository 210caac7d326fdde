"""Corpora as sources of whole samples: which rows each gives to some batches, planned at once and read later."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count, pairwise

import numpy as np

from iostack.loader.ahead.lookahead import LookAhead
from iostack.loader.ahead.residency import Residency
from iostack.loader.ahead.streams import Cursor, UnitSource
from iostack.loader.order.planned import PlannedSource
from iostack.loader.order.schedule import Draws, Int64s
from iostack.loader.reading import Reading
from iostack.loader.samples.row_units import RowUnit, RowUnits
from iostack.loader.samples.rows import RowReader
from iostack.loader.sequences.tokens import locate
from iostack.loader.sources import IndexedSource, StreamedSource
from iostack.loader.tasks.task import RowsTask, UnitRows
from iostack.plan.identity import row_identities
from iostack.plan.indexed import Rows
from iostack.plan.units import Unit


@dataclass(frozen=True)
class Part:
    """What one source gives to one or several batches: the ``places`` that it fills, and by which task.

    ``cursors`` are those after each batch, of the lanes that it takes from; none where the position says it all.
    """

    places: Int64s
    task: RowsTask
    cursors: Sequence[dict[int, Cursor]] = ()


class IndexedRows(IndexedSource):
    """One corpus whose counts are known: rows by arithmetic."""

    def __init__(self, source: PlannedSource, reading: Reading) -> None:
        super().__init__(Residency(source.corpus, reading.lookahead_bytes, reading.meter, reading.in_flight))
        self._plan = source.indexed_plan(reading.plan.lanes)
        self.number = source.number
        self.reader = RowReader(source, self.residency, reading.bad_samples, reading.watch, self._plan)

    def plan(self, draws: Draws, valid: np.ndarray, rows: int, batch_rows: int) -> Iterator[Part]:
        """Yield its part of each ``rows`` of a block; nothing is read yet."""
        located = locate(self._plan, self.residency, draws)
        identities = row_identities(self.number, located.shards, located.rows)
        for part, places in _cut(draws.places, len(valid), rows):
            of_part = Rows(located.epochs[part], located.shards[part], located.rows[part])
            is_valid = valid[draws.places[part]]
            task = RowsTask(self.number, of_part, is_valid, draws.positions[part], identities[part])
            yield Part(places, task)


class StreamedRows(StreamedSource[RowUnit]):
    """One corpus that is read by units: its counts are not known, or filters choose. Rows are permuted within each."""

    def __init__(self, source: PlannedSource, reading: Reading) -> None:
        residency = Residency(source.corpus, reading.lookahead_bytes, reading.meter, reading.in_flight)
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

    def plan(self, draws: Draws, valid: np.ndarray, rows: int, batch_rows: int) -> Iterator[Part]:
        """Yield its part of each ``rows`` of a block, and write which are valid; waits for units, reads no sample yet."""
        times, lanes = np.divmod(draws.positions, self.lanes)
        epochs, shards, numbers, which, draw_of, outputs = np.empty((6, len(times)), np.int64)
        units: list[Unit] = []
        for taken, (given, chosen, draw, is_valid) in self.take_all(draws.positions):
            epochs[taken], shards[taken], numbers[taken] = given.unit.epoch, given.unit.shard, given.order[chosen]
            which[taken], draw_of[taken], outputs[taken] = len(units), draw, chosen
            valid[draws.places[taken]] = is_valid
            units.append(given.unit)
        identities = row_identities(self.number, shards, numbers)
        lane_of = lanes.tolist()
        cursor_of = list(zip(draw_of.tolist(), (outputs + 1).tolist(), (times + 1).tolist(), strict=True))
        cursors = [
            dict(zip(lane_of[own], cursor_of[own], strict=True))
            for own, _ in _cut(draws.places, len(valid), batch_rows)
        ]
        together = rows // batch_rows
        for first, (part, places) in zip(count(0, together), _cut(draws.places, len(valid), rows)):
            located = Rows(epochs[part], shards[part], numbers[part])
            origins = UnitRows(units, which[part], outputs[part], lanes[part], draw_of[part])
            task = RowsTask(self.number, located, valid[draws.places[part]], origins, identities[part])
            yield Part(places, task, cursors[first : first + together])


def _cut(places: Int64s, num_places: int, rows: int) -> Iterator[tuple[slice, Int64s]]:
    """Yield which of the ascending ``places`` of a block lie in each ``rows`` of it, and where in these."""
    firsts = range(0, num_places, rows)
    bounds = np.searchsorted(places, [*firsts, num_places]).tolist()
    for first, (start, stop) in zip(firsts, pairwise(bounds), strict=True):
        part = slice(start, stop)
        yield part, places[part] - first
