"""Units of whole samples: which rows of a run come, in which order, where counts are not known or filters choose."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from iostack.errors import IostackError, PlanError, ShardError
from iostack.loader.ahead.residency import Residency
from iostack.loader.order.planned import PlannedSource
from iostack.loader.order.schedule import Int64s
from iostack.loader.tasks.task import UnitRow
from iostack.loader.transforming.bad_samples import BadSamples, nothing_is_good
from iostack.loader.transforming.filters import Filtering
from iostack.plan.identity import row_identities
from iostack.plan.keyed import derive_key, permutation
from iostack.plan.units import Unit, UnitPlan
from iostack.stages import stage

_ROW_ORDER = 6
_FILTERED_BYTES = 4 << 20
"""Samples of about so many bytes are held at once while filters look at a unit."""


class RowUnit:
    """The rows of one unit in the order in which they come, unread; ``bad_rows`` are those that no filter could judge.

    ``num_bytes`` are those of all its rows as they are stored, which are here but not in memory.
    """

    def __init__(
        self, unit: Unit, order: Int64s, num_bytes: int, bad_rows: Sequence[tuple[int, Exception]] = ()
    ) -> None:
        self.unit = unit
        self.order = order
        self.num_bytes = num_bytes
        self.bad_rows = bad_rows

    def __len__(self) -> int:
        return len(self.order)


class RowUnits:
    """Loads the units of one source; thread-safe.

    Filters read a unit some rows at a time, and only the numbers of the rows that they keep are held: those are read again
    for their batch. So look-ahead costs no memory, and a source of which little is left is read little more than once.
    """

    def __init__(self, source: PlannedSource, residency: Residency) -> None:
        self._source = source
        self._residency = residency
        self._filtering = Filtering(source)
        self._first_bad: Exception | None = None

    def load(self, unit: Unit) -> RowUnit:
        """Return the permuted rows of a unit without those to skip and those that a filter drops; opens its shard."""
        source = self._source
        num_rows = self._num_rows(unit)
        shard_bytes = int(self._residency.corpus.manifest.bytes[unit.shard])
        num_bytes = shard_bytes if unit.num_rows < 0 else self._residency.stored_bytes(unit.shard, num_rows)
        order = permutation(derive_key(source.seed, _ROW_ORDER, unit.epoch, unit.number), num_rows) + unit.first_row
        if len(source.skip):
            identities = row_identities(source.number, np.full(num_rows, unit.shard, np.int64), order)
            order = order[~source.skip.holds(identities)]
        if not source.filters:
            return RowUnit(unit, order, num_bytes)
        kept, bad_rows = self._filtered(unit.shard, np.sort(order))
        return RowUnit(unit, order[np.isin(order, kept)], num_bytes, bad_rows)

    def report_bad_rows(self, outputs: RowUnit, bad_samples: BadSamples) -> None:
        """Report the rows of a unit that a lane comes to which no filter could judge.

        Raises:
            SubstitutionError: the budget is exceeded.
        """
        for row, error in outputs.bad_rows:
            self._first_bad = self._first_bad or error
            bad_samples.left_out(f"{self._residency.corpus.shard_name(outputs.unit.shard)} row {row}", error)

    def why_nothing(self, told: str) -> IostackError:
        """Return the error for a corpus of which nothing comes."""
        uri = self._residency.corpus.uri
        if self._first_bad is not None:
            return nothing_is_good(uri, self._first_bad)
        if self._source.filters:
            samples = self._residency.corpus.manifest.total_samples
            of = f"any of {samples:,} samples" if samples is not None else "any sample"
            return PlanError(f"{uri}: the filters did not keep {of} ({told})", hint="loosen the filters")
        return PlanError(
            f"{uri} holds no samples: all its shards are empty, or all is skipped ({told})",
            hint="use a corpus that holds some",
        )

    def _num_rows(self, unit: Unit) -> int:
        held = self._residency.reader(unit.shard).counts.samples
        if unit.num_rows < 0:
            return held
        if unit.first_row + unit.num_rows > held:
            raise ShardError(
                f"{self._residency.corpus.shard_name(unit.shard)} holds {held} samples, fewer than the manifest says",
                hint="run iostack index on the corpus",
            )
        return unit.num_rows

    def _filtered(self, shard: int, rows: Int64s) -> tuple[list[int], list[tuple[int, Exception]]]:
        """Return those of some rows that the filters keep, and those that are bad, in order."""
        kept: list[int] = []
        bad_rows: list[tuple[int, Exception]] = []
        step = max(1, _FILTERED_BYTES // max(1, self._residency.stored_bytes(shard, 1)))
        for start in range(0, len(rows), step):
            some = rows[start : start + step].tolist()
            samples = self._residency.read_rows(shard, some)
            with stage("decode", samples=len(some), num_bytes=self._residency.stored_bytes(shard, len(some))):
                verdicts = [
                    self._filtering.judge(sample, shard, row) for row, sample in zip(some, samples, strict=True)
                ]
            for row, verdict in zip(some, verdicts, strict=True):
                if isinstance(verdict, Exception):
                    bad_rows.append((row, verdict))
                elif verdict:
                    kept.append(row)
        return kept, bad_rows


def substitutes_by_unit(origin: UnitRow, plan: UnitPlan, load: Callable[[Unit], RowUnit]) -> Iterator[tuple[int, int]]:
    """Yield the substitutes of a row as (shard, row): the outputs after it around its unit, then those of other units.

    A unit may hold nothing good, even a single row; so it borrows from the units after it, around their window.
    """
    for row in np.roll(load(origin.unit).order, -origin.output)[1:].tolist():
        yield origin.unit.shard, row
    for other in plan.substitutes(origin.lane, origin.draw):
        for row in load(other).order.tolist():
            yield other.shard, row
