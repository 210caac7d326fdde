"""How fast a piece of work goes: repeated in threads until the time is over."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

from iostack.loader.threads import Threads
from iostack.stopping import refuse_if_stopped


@dataclass(frozen=True)
class Speed:
    """What was done, in which time, by how many threads. ``samples`` is an estimate: of what so many stored bytes become."""

    samples: float
    bytes: int
    wall_s: float
    cpu_s: float
    threads: int

    @property
    def samples_per_s(self) -> float:
        """Samples in a second."""
        return self.samples / self.wall_s if self.wall_s else 0.0

    @property
    def mb_per_s(self) -> float:
        """Million bytes in a second."""
        return self.bytes / self.wall_s / 1e6 if self.wall_s else 0.0


Work = Callable[[int], tuple[float, int]]
"""Does the ``turn``-th piece of a work, and returns the bytes that it takes in its shards, and those worked on. Thread-safe."""


def measure(work: Work, *, threads: int, seconds: float, samples_per_byte: float) -> Speed:
    """Return how fast ``threads`` threads do a work for ``seconds``; each does one piece at least. Raises what it raises."""
    turns = count()
    lock = threading.Lock()
    started, cpu_before = time.perf_counter(), time.process_time()
    deadline = started + seconds

    def repeat() -> tuple[float, int]:
        stored, num_bytes = 0.0, 0
        while True:
            refuse_if_stopped()
            with lock:
                turn = next(turns)
            done = work(turn)
            stored, num_bytes = stored + done[0], num_bytes + done[1]
            if time.perf_counter() >= deadline:
                return stored, num_bytes

    pool = Threads(threads, "bench")
    try:
        done = [each.result() for each in [pool.submit(repeat) for _ in range(threads)]]
    finally:
        pool.close()
    wall_s, cpu_s = time.perf_counter() - started, time.process_time() - cpu_before
    samples = samples_per_byte * sum(each[0] for each in done)
    return Speed(samples, sum(each[1] for each in done), wall_s, cpu_s, threads)
