"""Which sample is being read or transformed: asked before each, told after. In threads only the slow ones are kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from iostack.corpus.contracts import Sample
from iostack.errors import SampleError
from iostack.loader.transforming.slow_samples import SlowSamples
from iostack.loader.workers.notes import Place


class Watch(Protocol):
    """Follows the work on samples. Thread-safe."""

    @property
    def is_careful(self) -> bool:
        """Whether rows are read one at a time, so that it shows which of them kills the process."""
        ...

    def reading(self, number: int, shard: int, row: int) -> None:
        """Be told that a row of the source ``number`` is about to be read; -1: several, or the shard is opened."""
        ...

    def begin(self, place: Place) -> str:
        """Be told that a sample is about to be transformed; return why it must not be, or nothing."""
        ...

    def end(self, place: Place, seconds: float) -> None:
        """Be told how long its transforms took."""
        ...

    def refusal(self, place: Place) -> str:
        """Return why a sample must not be touched, or nothing."""
        ...


class KeepSlow:
    """What threads need: the slow samples are kept, and none is refused."""

    is_careful = False

    def __init__(self, slow_samples: SlowSamples) -> None:
        self._slow_samples = slow_samples

    def reading(self, number: int, shard: int, row: int) -> None:
        """Do nothing."""

    def begin(self, place: Place) -> str:
        """Refuse nothing."""
        return ""

    def end(self, place: Place, seconds: float) -> None:
        """Keep it if it was slow."""
        self._slow_samples.add(place, seconds)

    def refusal(self, place: Place) -> str:
        """Refuse nothing."""
        return ""


def read_watched(
    read: Callable[[Sequence[int]], Sequence[Sample | Exception]],
    watch: Watch,
    number: int,
    shard: int,
    rows: Sequence[int],
) -> Sequence[Sample | Exception]:
    """Return the samples of ``rows`` of a shard of the source ``number``."""
    if not watch.is_careful:
        watch.reading(number, shard, rows[0] if len(rows) == 1 else -1)
        return read(rows)
    samples: list[Sample | Exception] = []
    for row in rows:
        if told := watch.refusal((number, shard, row)):
            samples.append(SampleError(told))
            continue
        watch.reading(number, shard, row)
        samples += read([row])
    return samples
