"""What all sources of a loader share: those whose order is arithmetic, and those that walk through units."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Generic, NamedTuple, Protocol, TypeVar

import numpy as np

from iostack.loader.ahead.residency import Residency
from iostack.loader.ahead.streams import Cursor, Outputs, Stretch, UnitSource
from iostack.loader.order.schedule import Draws, Int64s
from iostack.loader.state import Cursors


class Source(Protocol):
    """One corpus as a loader reads it."""

    def restore(self, cursors: Cursors, first_lane: int) -> None:
        """Put the lanes where the cursors say and begin loading from ``first_lane`` on."""
        ...

    def is_finished(self) -> bool:
        """Return whether a finite pass holds nothing more on this rank, as far as the data must be asked."""
        ...

    def stop(self) -> None:
        """Stop what runs ahead and drop what it brought."""
        ...

    def close(self) -> None:
        """Stop, and let go of the open shards."""
        ...


class IndexedSource:
    """A source whose order is arithmetic: it has no cursors, and the number of steps says when a pass ends."""

    def __init__(self, residency: Residency) -> None:
        self.residency = residency

    def restore(self, cursors: Cursors, first_lane: int) -> None:
        """Do nothing."""

    def is_finished(self) -> bool:
        """Return True."""
        return True

    def stop(self) -> None:
        """Stop fetching."""
        self.residency.stop()

    def close(self) -> None:
        """Stop, and let go of the open shards."""
        self.residency.close()


Given = TypeVar("Given", bound=Outputs)


class Taken(NamedTuple, Generic[Given]):
    """One output for one row of a block, and where its lane stands after it."""

    place: int
    outputs: Given
    output: int
    is_valid: bool
    lane: int
    cursor: Cursor


class StreamedSource(Generic[Given]):
    """A source that must look at its data: its lanes walk through units."""

    def __init__(self, number: int, residency: Residency, units: UnitSource[Given]) -> None:
        self.number = number
        self.residency = residency
        self._units = units

    @property
    def lanes(self) -> int:
        """The lanes of its plan."""
        return self._units.units.plan.lanes

    def take(self, draws: Draws) -> Iterator[Taken[Given]]:
        """Yield the next outputs of the drawn lanes, in the order of ``draws``; waits for units."""
        times, lanes = np.divmod(draws.positions, self.lanes)
        for place, lane, time in zip(draws.places.tolist(), lanes.tolist(), times.tolist(), strict=True):
            stream = self._units.stream(lane)
            outputs, output, is_valid = stream.take(time)
            yield Taken(place, outputs, output, is_valid, lane, stream.cursor)

    def take_all(self, positions: Int64s) -> Iterator[tuple[Int64s, Stretch[Given]]]:
        """Yield the outputs at positions that ascend in every lane, unit by unit, and the indices of their positions.

        Lanes take turns: while one waits for its next unit, those of the others load.
        """
        times, lanes = np.divmod(positions, self.lanes)
        by_lane = np.argsort(lanes, kind="stable")
        if not len(by_lane):
            return
        turns = deque(
            (indices, self._units.stream(int(lanes[indices[0]])).take_all(times[indices]))
            for indices in np.split(by_lane, np.flatnonzero(np.diff(lanes[by_lane])) + 1)
        )
        while turns:
            indices, stretches = turns.popleft()
            stretch = next(stretches)
            num_taken = len(stretch.chosen)
            yield indices[:num_taken], stretch
            if num_taken < len(indices):
                turns.append((indices[num_taken:], stretches))

    def restore(self, cursors: Cursors, first_lane: int) -> None:
        """Put the lanes where the cursors say and begin loading from ``first_lane`` on."""
        self._units.restore(cursors.get(self.number, {}), first_lane)

    def is_finished(self) -> bool:
        """Return whether the finite pass is over on this rank."""
        return self._units.is_finished()

    def stop(self) -> None:
        """Stop loading and drop what was loaded ahead."""
        self._units.stop()

    def close(self) -> None:
        """Stop, and let go of the open shards."""
        self.stop()
        self.residency.close()
