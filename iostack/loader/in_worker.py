"""What does the tasks of a loader in a worker process: the readers of its sources, without torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from iostack.batch_memory import BatchMemory
from iostack.loader.ahead.in_flight import InFlight
from iostack.loader.ahead.residency import Residency
from iostack.loader.metering.meter import Meter
from iostack.loader.samples.rows import RowReader
from iostack.loader.sequences.text import TextReader
from iostack.loader.tasks.task import BatchTask, Task, assemble
from iostack.loader.tasks.travel import Done, Setup, unpack_setup
from iostack.loader.transforming.bad_samples import BadSamples
from iostack.loader.transforming.slow_samples import SlowSamples
from iostack.loader.workers.notes import Notes, Phase, Place
from iostack.stages import Tally, tallying


def open_desk(setup: bytes, notes: Notes) -> Callable[[Task], Done]:
    """Return what does the tasks of a loader in this process."""
    return Desk(unpack_setup(setup), notes).do


class Desk:
    """The readers of all sources, and what they report while they do a task."""

    def __init__(self, setup: Setup, notes: Notes) -> None:
        plan = setup.plan
        self._watch = NotingWatch(notes)
        self._bad_samples = RecordedBadSamples(setup.budget)
        self._memory = BatchMemory()
        self._rows: dict[int, RowReader] = {}
        self._texts: dict[int, TextReader] = {}
        for source in plan.sources:
            residency = Residency(source.corpus, 0, Meter(), InFlight(0))
            if source.kind == "text":
                assert plan.seq_len is not None
                self._texts[source.number] = TextReader(
                    source, residency, self._bad_samples, self._watch, seq_len=plan.seq_len
                )
            elif source.kind != "tokens":
                order = source.unit_plan(plan.lanes) if source.uses_units else source.indexed_plan(plan.lanes)
                self._rows[source.number] = RowReader(source, residency, self._bad_samples, self._watch, order)

    def do(self, task: Task) -> Done:
        """Return the result of a task, with what was reported."""
        self._bad_samples.calls = []
        with tallying(Tally("assemble")) as tally:
            result = self._result(task)
        return Done(result, self._bad_samples.calls, self._watch.slow_samples.places(), tally)

    def _result(self, task: Task) -> Any:
        if isinstance(task, BatchTask):
            return assemble(task, lambda rows: self._rows[rows.number].read(rows), self._memory)
        return self._texts[task.number].load(task.unit)


class RecordedBadSamples(BadSamples):
    """Reports nothing itself: its parent makes the same calls as each task is done, and counts."""

    def __init__(self, budget: int) -> None:
        super().__init__(budget)
        self.calls: list[tuple[str, tuple[Any, ...]]] = []

    def substituted(self, bad: str, error: Exception, substitute: str) -> None:
        """Keep the call."""
        self.calls.append(("substituted", (bad, error, substitute)))

    def dropped(self, unit: str, bad: Sequence[str], error: Exception) -> None:
        """Keep the call."""
        self.calls.append(("dropped", (unit, list(bad), error)))


class NotingWatch:
    """Notes each sample before it is touched, so that the parent knows which one killed the process."""

    def __init__(self, notes: Notes) -> None:
        self._notes = notes
        self.slow_samples = SlowSamples()

    @property
    def is_careful(self) -> bool:
        """Whether rows are read one at a time."""
        return self._notes.is_careful

    def reading(self, number: int, shard: int, row: int) -> None:
        """Note that a row is about to be read."""
        self._notes.write(Phase.READING, (number, shard, row))

    def begin(self, place: Place) -> str:
        """Note that a sample is about to be transformed, unless it is refused."""
        told = self._notes.refusal(place)
        if not told:
            self._notes.write(Phase.TRANSFORMING, place)
        return told

    def end(self, place: Place, seconds: float) -> None:
        """Note that a sample has been transformed."""
        self.slow_samples.add(place, seconds)
        self._notes.write(Phase.OTHER, (place[0], place[1], -1))

    def refusal(self, place: Place) -> str:
        """Return why a sample must not be touched, or nothing."""
        return self._notes.refusal(place)
