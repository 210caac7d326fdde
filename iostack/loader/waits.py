"""Whose waiting counts: the consumer's, each second once, under the stage that it waited for.

What a pool thread waits for bytes is noted by that thread and comes with its result; of the time that the consumer waits for
the result so much is put down to the origin, and the rest to decoding.
"""

from __future__ import annotations

import threading
import time as clock
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

Result = TypeVar("Result")


class _Thread(threading.local):
    """What one thread has waited for bytes in all."""

    origin_s = 0.0


_thread = _Thread()


class Waited(NamedTuple):
    """Seconds of waiting, by stage."""

    origin_s: float = 0.0
    decode_s: float = 0.0

    def add(self, waited_s: float, origin_s: float) -> Waited:
        """Return the sum with a wait of ``waited_s`` for work that itself waited ``origin_s`` for bytes."""
        origin_s = min(waited_s, origin_s)
        return Waited(self.origin_s + origin_s, self.decode_s + waited_s - origin_s)


@contextmanager
def waiting_for_bytes() -> Iterator[None]:
    """Count the time inside as waiting for bytes, by this thread."""
    started = clock.perf_counter()
    try:
        yield
    finally:
        _thread.origin_s += clock.perf_counter() - started


def with_origin_s(work: Callable[..., Result], *arguments: object) -> tuple[Result, float]:
    """Return the result of ``work(*arguments)`` and the seconds that this thread waited for bytes in it."""
    before = _thread.origin_s
    result = work(*arguments)
    return result, _thread.origin_s - before
