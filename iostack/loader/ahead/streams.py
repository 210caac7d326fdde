"""Lane streams: the outputs of units, in order, for sources whose order needs a look at the data.

    lane ──draw──> unit ──pool thread: read, tokenise──> outputs ──take──> one row of a batch

A stream is at a cursor (draw, given, time): ``given`` outputs of its ``draw``-th unit are out, ``time`` in all. Units are
loaded ahead by threads, as far as the bound allows; what a unit gives is a pure function of the unit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from iostack.corpus.corpus import Corpus
from iostack.errors import IostackError, StateError
from iostack.loader.ahead.lookahead import LookAhead
from iostack.loader.metering.meter import Meter, Pending
from iostack.loader.threads import Threads, patience_s
from iostack.plan.units import Unit, UnitPlan

_UNITS_REMEMBERED = 1 << 12

Cursor = tuple[int, int, int]
"""(draw, outputs given of that unit, outputs given in all)."""


class Outputs(Protocol):
    """What one unit gives."""

    def __len__(self) -> int: ...

    @property
    def bad_rows(self) -> Sequence[Any]:
        """What is reported whenever a lane comes to it."""
        ...

    @property
    def num_bytes(self) -> int:
        """What it takes in memory, or in the cache."""
        ...


Given = TypeVar("Given", bound=Outputs)


class Stretch(NamedTuple, Generic[Given]):
    """Successive takes from one unit: int64, which of its outputs each got, and what is true of all of them."""

    outputs: Given
    chosen: NDArray[np.int64]
    draw: int
    is_valid: bool


class UnitSource(Generic[Given]):
    """All lane streams of one source on one rank. Belongs to one thread; units load in others.

    ``load`` turns a unit into its outputs and runs in pool threads; ``begin`` is told of the outputs when a lane comes to
    them. ``epochs`` bounds a finite pass. Units are loaded ahead in the order in which lanes will need them,
    as far as ``lookahead`` has room, by ``threads``, which whoever made them closes, each for as long as its bytes and
    ``slack_s`` allow. ``why_nothing`` gives the error where
    no unit gives any output, or ``most_in_vain`` units of a lane in a row give none. What filters and skip lists leave of a
    corpus may stand in few of its units: one that gave nothing is not loaded again, unless it ``varies`` from epoch to epoch.
    """

    def __init__(
        self,
        units: UnitPlan,
        load: Callable[[Unit], Given],
        *,
        corpus: Corpus,
        meter: Meter,
        own_lanes: Sequence[int],
        epochs: int | None,
        lookahead: LookAhead,
        threads: Threads,
        slack_s: float = 0.0,
        begin: Callable[[Given], None],
        why_nothing: Callable[[str], IostackError],
        most_in_vain: int,
        varies: bool = False,
    ) -> None:
        self.units = units
        self._unit = lru_cache(_UNITS_REMEMBERED)(units.unit)
        self.own_lanes = own_lanes
        self.epochs = epochs
        self._meter = meter
        self._load = load
        self._corpus = corpus
        self._streams: dict[int, LaneStream[Given]] = {}
        self._threads = threads
        self._slack_s = slack_s
        self._lookahead = lookahead
        self._coming: deque[tuple[int, int]] = deque()
        self._ahead: dict[tuple[int, int], Pending[Given]] = {}
        self._empty: set[int] = set()
        self._barren: set[int] = set()
        self._varies = varies
        self._begin = begin
        self._why_nothing = why_nothing
        self._most_in_vain = most_in_vain

    def stream(self, lane: int) -> LaneStream[Given]:
        """Return the stream of a lane, from its start unless ``restore`` said otherwise."""
        stream = self._streams.get(lane)
        if stream is None:
            stream = self._streams[lane] = LaneStream(self, lane, (0, 0, 0))
        return stream

    def restore(self, cursors: dict[int, Cursor], first_lane: int) -> None:
        """Put every lane where its cursor says, else at its start, and begin loading from ``first_lane`` on."""
        self.stop()
        self._streams = {lane: LaneStream(self, lane, cursor) for lane, cursor in cursors.items()}
        for lane in sorted(self.own_lanes, key=lambda lane: (lane < first_lane, lane)):
            self._await_turn(lane, self.stream(lane).cursor[0])
        self._load_ahead()

    def outputs(self, lane: int, draw: int) -> Given:
        """Return the outputs of a unit, waiting for them if need be, and let the lane's next be loaded in its turn."""
        unit = self._unit(lane, draw)
        pending = self._ahead.pop((lane, draw), None)
        if pending is None:
            pending = self._submit(unit)
            if (lane, draw) in self._coming:
                self._coming.remove((lane, draw))
        self._await_turn(lane, draw + 1)
        self._load_ahead()
        outputs = pending.result(
            deadline_s=patience_s(int(self._corpus.manifest.bytes[unit.shard])) + self._slack_s,
            awaited=lambda: self._name(unit),
        )
        self._begin(outputs)
        if not len(outputs):
            self._empty.add(unit.number)
            if not (self._varies or outputs.bad_rows):
                self._barren.add(unit.number)
        return outputs

    def passes_over(self, lane: int, draw: int) -> bool:
        """Return whether a unit is known to give nothing; if it was to be loaded, the lane's next is in its place."""
        if not self._is_barren(lane, draw):
            return False
        was_ahead = self._ahead.pop((lane, draw), None) is not None
        if was_ahead or (lane, draw) in self._coming:
            if not was_ahead:
                self._coming.remove((lane, draw))
            self._await_turn(lane, draw + 1)
            self._load_ahead()
        return True

    def refuse_nothing(self, lane: int, empty_in_a_row: int) -> None:
        """Raise ``why_nothing`` where no unit gives anything, or where what a lane is dealt never does."""
        if empty_in_a_row >= self._most_in_vain or len(self._empty) == self.units.num_units:
            raise self._why_nothing(f"lane {lane} read {empty_in_a_row} units and got nothing")

    def is_past_end(self, lane: int, draw: int) -> bool:
        """Return whether a lane's ``draw``-th unit lies beyond the finite pass."""
        return self.epochs is not None and draw >= self.units.draws_in(lane, self.epochs)

    def is_finished(self) -> bool:
        """Return whether the finite pass holds no more outputs of any lane of this rank."""
        return all(self.stream(lane).is_finished() for lane in self.own_lanes)

    def stop(self) -> None:
        """Load no more and drop what was loaded; ``threads`` come to the end of the units under way."""
        self._coming.clear()
        self._ahead.clear()
        self._streams.clear()

    def _is_barren(self, lane: int, draw: int) -> bool:
        return bool(self._barren) and self._unit(lane, draw).number in self._barren

    def _await_turn(self, lane: int, draw: int) -> None:
        """Have a lane's unit loaded in its turn, or the first after it that is not known to give nothing."""
        for later in range(draw, draw + self.units.num_units):
            if self.is_past_end(lane, later):
                return
            if not self._is_barren(lane, later):
                self._coming.append((lane, later))
                return

    def _load_ahead(self) -> None:
        num_used = sum(stream.holds_outputs for stream in self._streams.values())
        while self._coming and self._lookahead.has_room(self._ahead.values(), num_used=num_used):
            lane, draw = self._coming.popleft()
            self._ahead[lane, draw] = self._submit(self._unit(lane, draw))

    def _submit(self, unit: Unit) -> Pending[Given]:
        return self._meter.submit(self._threads, "assemble", self._load_measured, unit, label=lambda: self._name(unit))

    def _load_measured(self, unit: Unit) -> Given:
        outputs = self._load(unit)
        self._lookahead.measured(outputs.num_bytes)
        return outputs

    def _name(self, unit: Unit) -> str:
        return f"unit {unit.number} of {self._corpus.shard_name(unit.shard)}"


class LaneStream(Generic[Given]):
    """The outputs of one lane, in order."""

    def __init__(self, source: UnitSource[Given], lane: int, cursor: Cursor) -> None:
        self._source = source
        self._lane = lane
        self._draw, self._given, self._time = cursor
        self._outputs: Given | None = None

    @property
    def holds_outputs(self) -> bool:
        """Whether the outputs of its unit are loaded."""
        return self._outputs is not None

    @property
    def cursor(self) -> Cursor:
        """Where the stream is."""
        return self._draw, self._given, self._time

    def take(self, time: int) -> tuple[Given, int, bool]:
        """Return (outputs of a unit, which of them, whether it lies within the finite pass) of the ``time``-th output.

        ``time`` must not go back; outputs before it that other ranks take are passed over.
        """
        outputs = self._reach(time)
        chosen = self._given
        self._given += 1
        self._time += 1
        return outputs, chosen, not self._source.is_past_end(self._lane, self._draw)

    def take_all(self, times: NDArray[np.int64]) -> Iterator[Stretch[Given]]:
        """Yield what ``take`` would return for each of ``times``, int64 and ascending, unit by unit."""
        while len(times):
            outputs = self._reach(int(times[0]))
            chosen = times + (self._given - self._time)
            if chosen[-1] >= len(outputs):
                chosen = chosen[: np.searchsorted(chosen, len(outputs))]
            self._given = int(chosen[-1]) + 1
            self._time = int(times[len(chosen) - 1]) + 1
            yield Stretch(outputs, chosen, self._draw, not self._source.is_past_end(self._lane, self._draw))
            times = times[len(chosen) :]

    def _reach(self, time: int) -> Given:
        """Go on to the ``time``-th output, and return those of its unit."""
        if time < self._time:
            raise StateError(f"field 'cursors': lane {self._lane} is at output {self._time}, after {time}")
        while True:
            outputs = self._next_outputs()
            step = min(time - self._time, len(outputs) - self._given)
            self._given += step
            self._time += step
            if self._given < len(outputs):
                return outputs

    def is_finished(self) -> bool:
        """Return whether the finite pass holds no more outputs; loads no unit beyond it."""
        while not self._source.is_past_end(self._lane, self._draw):
            if self._given < self._num_outputs():
                return False
            self._next_unit()
        return True

    def _next_outputs(self) -> Given:
        """Return the outputs of the unit that gives the next output, going on past units that give nothing more."""
        empty_in_a_row = 0
        while self._given >= (num_outputs := self._num_outputs()):
            empty_in_a_row = empty_in_a_row + 1 if num_outputs == 0 else 0
            self._source.refuse_nothing(self._lane, empty_in_a_row)
            self._next_unit()
        return self._unit_outputs()

    def _num_outputs(self) -> int:
        """Return how many outputs its unit gives; loads it only where that is not known to be none."""
        if self._outputs is None and self._source.passes_over(self._lane, self._draw):
            return 0
        return len(self._unit_outputs())

    def _unit_outputs(self) -> Given:
        if self._outputs is None:
            self._outputs = self._source.outputs(self._lane, self._draw)
        return self._outputs

    def _next_unit(self) -> None:
        self._draw += 1
        self._given = 0
        self._outputs = None
