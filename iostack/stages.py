"""The stages of the pipeline, and the clock that puts every second of a thread's work under exactly one of them.

    origin ──> cache ──> read ──> decode ──> assemble ──> pin ──> device ──> consumer

Code anywhere marks what it does with ``with stage("cache"):``. Where nobody measures this thread that does nothing; where a
``Tally`` is open, the seconds inside go to that stage and no longer to the one around it. What one piece of work waits for
another is kept apart from what it does, and shared out by what the other did.
"""

from __future__ import annotations

import threading
import time as clock
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Protocol

STAGES = ("origin", "cache", "read", "decode", "assemble", "pin", "device", "consumer")
"""origin: bytes from the storage. cache: unpacking, and writing to the disk. read: opening shards, and their readers.
decode: transforms and tokenizers. assemble: gathering rows into batches. pin: into pinned memory. device: copies to it.
consumer: what the consumer does between two batches."""

Label = str | Callable[[], str]
"""Names what is worked on, for traces; a function is only called where there is one."""


class SpanSink(Protocol):
    """Takes the spans of tallies; ``iostack.loader.metering.trace`` writes them to a file. Thread-safe."""

    def span(self, name: str, started: float, ended: float, label: Label | None) -> None:
        """Take what this thread did from one reading of ``time.perf_counter`` to another."""
        ...

    def counter(self, name: str, value: int) -> None:
        """Take a figure as it is now."""
        ...


class Tally:
    """What one thread did, and waited for, by stage: seconds, samples, bytes. Belongs to that thread until it is done."""

    __slots__ = ("_now_in", "_since", "base", "brought", "busy_s", "bytes", "samples", "sink", "waited_s")

    def __init__(self, base: str, sink: SpanSink | None = None) -> None:
        self.base = base
        self.sink = sink
        self.busy_s: dict[str, float] = {}
        self.waited_s: dict[str, float] = {}
        self.samples: dict[str, int] = {}
        self.bytes: dict[str, int] = {}
        self.brought = 0
        """Objects that were brought into the cache."""
        self._now_in: str | None = None
        self._since = 0.0

    def switch(self, stage: str | None) -> str | None:
        """Go on in another stage, or in none, and return the one before."""
        now = clock.perf_counter()
        before = self._now_in
        if before is not None:
            self.busy_s[before] = self.busy_s.get(before, 0.0) + now - self._since
        self._now_in, self._since = stage, now
        return before

    def add(self, stage: str, samples: int, num_bytes: int) -> None:
        """Count samples and bytes that a stage has worked on."""
        self.samples[stage] = self.samples.get(stage, 0) + samples
        self.bytes[stage] = self.bytes.get(stage, 0) + num_bytes

    def take(self, other: Tally) -> None:
        """Become what ``other`` is: the work was done by another process, and its tally came with the result."""
        self.busy_s, self.waited_s = other.busy_s, other.waited_s
        self.samples, self.bytes, self.brought = other.samples, other.bytes, other.brought

    def wait(self, waited_s: float, other: Tally) -> None:
        """Put down that this work waited for that of ``other``: each stage gets the share that it had of that work."""
        for stage, share_s in shared_out(waited_s, other).items():
            self.waited_s[stage] = self.waited_s.get(stage, 0.0) + share_s


def shared_out(seconds: float, tally: Tally) -> dict[str, float]:
    """Return ``seconds`` in parts, by stage, in proportion to what a work did and waited for; they sum to ``seconds``."""
    spent: dict[str, float] = dict(tally.busy_s)
    for stage, waited_s in dict(tally.waited_s).items():
        spent[stage] = spent.get(stage, 0.0) + waited_s
    total = sum(spent.values())
    if total <= 0.0:  # it has not begun
        return {tally.base: seconds}
    return {stage: seconds * part / total for stage, part in spent.items()}


class _Here(threading.local):
    tally: Tally | None = None


_here = _Here()


class stage:
    """A context whose time counts as that of one stage; ``samples`` and ``num_bytes`` are what it works on."""

    __slots__ = ("_before", "_label", "_name", "_num_bytes", "_samples", "_started", "_tally")

    def __init__(self, name: str, *, samples: int = 0, num_bytes: int = 0, label: Label | None = None) -> None:
        self._name = name
        self._samples = samples
        self._num_bytes = num_bytes
        self._label = label

    def __enter__(self) -> None:
        self._tally = tally = _here.tally
        if tally is not None:
            self._before = tally.switch(self._name)
            self._started = tally._since

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        tally = self._tally
        if tally is None:
            return
        tally.switch(self._before)
        if self._samples or self._num_bytes:
            tally.add(self._name, self._samples, self._num_bytes)
        if tally.sink is not None:
            tally.sink.span(self._name, self._started, tally._since, self._label)


def count(name: str, *, samples: int = 0, num_bytes: int = 0) -> None:
    """Count samples and bytes under a stage where only its end tells how many there were."""
    if _here.tally is not None:
        _here.tally.add(name, samples, num_bytes)


def count_brought() -> None:
    """Count one object that was not in the cache and was brought there."""
    if _here.tally is not None:
        _here.tally.brought += 1


def tally_here() -> Tally | None:
    """Return the tally that is open in this thread, if any."""
    return _here.tally


@contextmanager
def tallying(tally: Tally, label: Label | None = None) -> Iterator[Tally]:
    """Open a tally in this thread: time that no inner stage takes goes to its base. Must not be left by a ``yield``."""
    before, _here.tally = _here.tally, tally
    tally.switch(tally.base)
    started = tally._since
    try:
        yield tally
    finally:
        tally.switch(None)
        _here.tally = before
        if tally.sink is not None:
            tally.sink.span(tally.base, started, tally._since, label)


@contextmanager
def waiting_for(other: Tally, label: Label | None = None) -> Iterator[None]:
    """Count the time inside as waiting for the work of ``other``, not as work of this thread."""
    tally = _here.tally
    if tally is None:
        yield
        return
    before = tally.switch(None)
    started = tally._since
    try:
        yield
    finally:
        tally.switch(before)
        tally.wait(tally._since - started, other)
        if tally.sink is not None:
            tally.sink.span("wait", started, tally._since, label)
