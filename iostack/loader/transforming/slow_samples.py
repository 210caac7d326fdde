"""Which samples take long in their transforms: the slowest are kept, with their places, and told now and then."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from iostack import logs
from iostack.loader.workers.notes import Place

log = logs.logger("iostack.loader")

MOST = 10
_TOLD_FROM_S, _TELL_EVERY_S = 1.0, 60.0


class SlowSample(NamedTuple):
    """One sample, by the number of its source, the name of its shard and its row, and how long its transforms took."""

    source: int
    shard: str
    row: int
    seconds: float


class SlowSamples:
    """The slowest samples that a loader has met; thread-safe. ``name(source, shard)`` names a shard.

    Without it nothing is told, as in a worker process: its parent knows the names, and tells.
    """

    def __init__(self, name: Callable[[int, int], str] | None = None) -> None:
        self._name = name
        self._slowest: dict[Place, float] = {}
        self._least_s = 0.0
        self._told_at = -_TELL_EVERY_S
        self._lock = threading.Lock()

    def add(self, place: Place, seconds: float) -> None:
        """Note how long one sample took."""
        if seconds <= self._least_s:
            return
        with self._lock:
            self._slowest[place] = max(seconds, self._slowest.get(place, 0.0))
            if len(self._slowest) > MOST:
                del self._slowest[min(self._slowest, key=self._slowest.__getitem__)]
                self._least_s = min(self._slowest.values())
            now = time.monotonic()
            if self._name is None or seconds < _TOLD_FROM_S or now - self._told_at < _TELL_EVERY_S:
                return
            self._told_at = now
        source, shard, row = place
        log.warning("slow sample %s row %d: its transforms took %.1f s", self._name(source, shard), row, seconds)

    def places(self) -> list[tuple[Place, float]]:
        """Return the slowest, by their places."""
        with self._lock:
            return sorted(self._slowest.items(), key=lambda item: -item[1])

    def slowest(self) -> list[SlowSample]:
        """Return the slowest, slowest first."""
        name = self._name or (lambda source, shard: f"shard {shard} of source {source}")
        return [SlowSample(at[0], name(at[0], at[1]), at[2], seconds) for at, seconds in self.places()]
