"""Lane streams: the outputs of units, in order, for sources whose order needs a look at the data.

    lane ──draw──> unit ──pool thread: read, tokenise──> outputs ──take──> one row of a batch

A stream is at a cursor (draw, given, time): ``given`` outputs of its ``draw``-th unit are out, ``time`` in all. Units are
loaded ahead by threads, as far as ``lookahead_bytes`` allows; what a unit gives is a pure function of the unit.
"""

from __future__ import annotations

import time as clock
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, Protocol, TypeVar

from iostack.errors import PlanError, StateError
from iostack.plan.units import Unit, UnitPlan

Cursor = tuple[int, int, int]
"""(draw, outputs given of that unit, outputs given in all)."""

UNIT_DEADLINE_S = 600.0
"""A unit that is not there after this many seconds is an error, not a hang."""


class Outputs(Protocol):
    """What one unit gives."""

    def __len__(self) -> int: ...


Given = TypeVar("Given", bound=Outputs)


class UnitSource(Generic[Given]):
    """All lane streams of one source on one rank. Belongs to one thread; units load in others.

    ``load`` turns a unit into its outputs and runs in pool threads. ``epochs`` bounds a finite pass.
    """

    def __init__(
        self,
        units: UnitPlan,
        load: Callable[[Unit], Given],
        *,
        own_lanes: Sequence[int],
        epochs: int | None,
        lookahead_units: int,
        threads: int,
        what_is_missing: Callable[[], str],
    ) -> None:
        self.units = units
        self.own_lanes = own_lanes
        self.epochs = epochs
        self.wait_s = 0.0
        self._load = load
        self._streams: dict[int, LaneStream[Given]] = {}
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="iostack-unit")
        self._lookahead_units = lookahead_units
        self._ahead: dict[tuple[int, int], Future[Given]] = {}
        self._what_is_missing = what_is_missing

    def stream(self, lane: int) -> LaneStream[Given]:
        """Return the stream of a lane, from its start unless ``restore`` said otherwise."""
        stream = self._streams.get(lane)
        if stream is None:
            stream = self._streams[lane] = LaneStream(self, lane, (0, 0, 0))
        return stream

    def restore(self, cursors: dict[int, Cursor]) -> None:
        """Put every lane where its cursor says; lanes without one are at their start."""
        for future in self._ahead.values():
            future.cancel()
        self._ahead.clear()
        self._streams = {lane: LaneStream(self, lane, cursor) for lane, cursor in cursors.items()}

    def start(self, first_lane: int) -> None:
        """Begin loading the units that come first, from ``first_lane`` on."""
        lanes = sorted(self.own_lanes, key=lambda lane: (lane < first_lane, lane))
        for lane in lanes:
            self.load_ahead(lane, self.stream(lane).cursor[0])

    def load_ahead(self, lane: int, draw: int) -> None:
        """Begin loading a unit if the look-ahead has room; else it is loaded when it is needed."""
        if len(self._ahead) < self._lookahead_units and (lane, draw) not in self._ahead:
            unit = self.units.unit(lane, draw)
            self._ahead[lane, draw] = self._pool.submit(self._load, unit)

    def outputs(self, lane: int, draw: int) -> Given:
        """Return the outputs of a unit, waiting for them if need be, and begin with the lane's next."""
        future = self._ahead.pop((lane, draw), None)
        started = clock.perf_counter()
        if future is None:
            future = self._pool.submit(self._load, self.units.unit(lane, draw))
        self.load_ahead(lane, draw + 1)
        try:
            return future.result(timeout=UNIT_DEADLINE_S)
        except TimeoutError as error:
            unit = self.units.unit(lane, draw)
            raise PlanError(
                f"unit {unit.number} of shard {unit.shard} did not arrive in {UNIT_DEADLINE_S:.0f} s"
            ) from error
        finally:
            self.wait_s += clock.perf_counter() - started

    def nothing_given(self, lane: int, draws: int) -> PlanError:
        """Return the error for a lane that met ``draws`` units in a row without an output."""
        return PlanError(f"{self._what_is_missing()} (lane {lane} read {draws} units and got nothing)")

    def is_past_end(self, lane: int, draw: int) -> bool:
        """Return whether a lane's ``draw``-th unit lies beyond the finite pass."""
        return self.epochs is not None and draw >= self.units.draws_in(lane, self.epochs)

    def is_finished(self) -> bool:
        """Return whether every lane of this rank is beyond the finite pass."""
        return all(self.is_past_end(lane, self.stream(lane).next_draw()) for lane in self.own_lanes)

    def close(self) -> None:
        """Stop loading; waits for the units under way."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._ahead.clear()
        self._streams.clear()


class LaneStream(Generic[Given]):
    """The outputs of one lane, in order."""

    def __init__(self, source: UnitSource[Given], lane: int, cursor: Cursor) -> None:
        self._source = source
        self._lane = lane
        self._draw, self._given, self._time = cursor
        self._outputs: Given | None = None

    @property
    def cursor(self) -> Cursor:
        """Where the stream is."""
        return self._draw, self._given, self._time

    def take(self, time: int) -> tuple[Given, int, bool]:
        """Return (outputs of a unit, which of them, whether it lies within the finite pass) of the ``time``-th output.

        ``time`` must not go back; outputs before it that other ranks take are passed over.
        """
        if time < self._time:
            raise StateError(f"field 'cursors': lane {self._lane} is at output {self._time}, after {time}")
        while True:
            outputs = self._next_outputs()
            step = min(time - self._time, len(outputs) - self._given)
            self._given += step
            self._time += step
            if self._given < len(outputs):
                break
        chosen = self._given
        self._given += 1
        self._time += 1
        return outputs, chosen, not self._source.is_past_end(self._lane, self._draw)

    def next_draw(self) -> int:
        """Return the draw of the unit that gives the next output."""
        self._next_outputs()
        return self._draw

    def _next_outputs(self) -> Given:
        """Return the outputs of the unit that gives the next output, going on past units that give nothing more."""
        empty_in_a_row = 0
        while True:
            if self._outputs is None:
                self._outputs = self._source.outputs(self._lane, self._draw)
            if self._given < len(self._outputs):
                return self._outputs
            empty_in_a_row = empty_in_a_row + 1 if len(self._outputs) == 0 else 0
            if empty_in_a_row >= self._source.units.num_units:
                raise self._source.nothing_given(self._lane, empty_in_a_row)
            self._draw += 1
            self._given = 0
            self._outputs = None
