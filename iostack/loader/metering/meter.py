"""What the stages of one loader have done, and for which of them its consumer has waited.

Works that run in threads bring a tally each. The time that the consumer waits for a work is shared out by what that
work did, so all waits together are the time waited, by construction: what nothing claims is assembling.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

from iostack.loader.threads import Threads, wait_for
from iostack.stages import STAGES, Label, SpanSink, Tally, tallying, waiting_for

Result = TypeVar("Result")


@dataclass(frozen=True)
class StageFigures:
    """What one stage has done: ``busy_s`` over all threads, ``wait_s`` of the consumer, samples, and bytes.

    Bytes are those fetched (origin), written (cache), those that the rows take in their shards (read, decode), and those of the
    batches (assemble, pin, device).
    """

    busy_s: float
    wait_s: float
    samples: int
    bytes: int


class Pending(Generic[Result]):
    """Work in a thread, and the tally of what it does."""

    future: Future[Result]

    def __init__(self, tally: Tally) -> None:
        self.tally = tally
        self.is_done = False
        """Asked of all pending works for each batch: ``future.done()`` would take a lock for each."""

    def result(self, *, deadline_s: float, awaited: Callable[[], str]) -> Result:
        """Return the result as ``wait_for`` does; the wait goes to the stages that the work was busy with."""
        with waiting_for(self.tally, awaited):
            return wait_for(self.future, deadline_s=deadline_s, awaited=awaited)


class Meter:
    """The figures of one loader. Thread-safe, but for ``consuming``, ``waited_s``, ``consumer_s`` and ``batches``: the consumer's."""

    def __init__(self, sink: SpanSink | None = None) -> None:
        self.sink = sink
        self.waited_s = 0.0
        """Seconds that the consumer has waited for batches, in all."""
        self.consumer_s = 0.0
        self.batches = 0
        self.cache_hits = 0
        self.cache_misses = 0
        self.lookahead_bytes = 0
        """Bytes of shards that are fetched, or being fetched, and not read yet."""
        self._lock = threading.Lock()
        self._busy_s = dict.fromkeys(STAGES, 0.0)
        self._samples = dict.fromkeys(STAGES, 0)
        self._bytes = dict.fromkeys(STAGES, 0)
        self._wait_s = dict.fromkeys(STAGES, 0.0)
        self._assembling_s = 0.0

    def submit(
        self, threads: Threads, base: str, work: Callable[..., Result], *arguments: object, label: Label | None = None
    ) -> Pending[Result]:
        """Let ``threads`` do ``work(*arguments)``; what no stage inside claims counts as ``base``."""
        pending: Pending[Result] = Pending(Tally(base, self.sink))
        pending.future = threads.submit(self._tallied, pending, label, work, *arguments)
        return pending

    def add(self, tally: Tally) -> None:
        """Add what a work did."""
        with self._lock:
            self._add(tally)

    @contextmanager
    def consuming(self) -> Iterator[None]:
        """Count what the consumer's thread does inside, for a block of batches: all of it is waiting, as the consumer sees it."""
        tally = Tally("assemble", self.sink)
        try:
            with tallying(tally):
                yield
        finally:
            with self._lock:
                self._add(tally)
                for spent in (tally.busy_s, tally.waited_s):
                    for stage, seconds in spent.items():
                        self._wait_s[stage] += seconds

    def consumed(self, blocks: Iterator[Result]) -> Iterator[Result]:
        """Yield what ``blocks`` gives; what the consumer's thread does to get it is counted by ``consuming``."""
        while True:
            with self.consuming():
                try:
                    block = next(blocks)
                except StopIteration:
                    return
            yield block

    def opened(self, *, from_cache: bool) -> None:
        """Count a shard that was opened, by whether its bytes were here before anybody asked for them."""
        with self._lock:
            if from_cache:
                self.cache_hits += 1

    def hold(self, num_bytes: int) -> None:
        """Count bytes that are fetched ahead; less than none where they are let go."""
        if not num_bytes:
            return
        with self._lock:
            self.lookahead_bytes = held = self.lookahead_bytes + num_bytes
        if self.sink is not None:
            self.sink.counter("look-ahead bytes", held)

    def figures(self) -> dict[str, StageFigures]:
        """Return the figures of each stage so far."""
        with self._lock:
            wait_s = dict(self._wait_s)
            wait_s["assemble"] = 0.0
            # A block's waits are here just before waited_s has grown by them: what is read then must not fall back.
            self._assembling_s = max(self._assembling_s, self.waited_s - math.fsum(wait_s.values()))
            wait_s["assemble"] = self._assembling_s
            busy_s = self._busy_s | {"consumer": self.consumer_s}
            return {
                stage: StageFigures(busy_s[stage], wait_s[stage], self._samples[stage], self._bytes[stage])
                for stage in STAGES
            }

    def _add(self, tally: Tally) -> None:
        for stage, seconds in tally.busy_s.items():
            self._busy_s[stage] += seconds
        for stage, samples in tally.samples.items():
            self._samples[stage] += samples
        for stage, num_bytes in tally.bytes.items():
            self._bytes[stage] += num_bytes
        self.cache_misses += tally.brought

    def _tallied(
        self, pending: Pending[Result], label: Label | None, work: Callable[..., Result], *arguments: object
    ) -> Result:
        try:
            with tallying(pending.tally, label):
                return work(*arguments)
        finally:
            self.add(pending.tally)
            pending.is_done = True
