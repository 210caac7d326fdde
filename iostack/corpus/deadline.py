"""Calls into storage clients that may hang: given up when nothing moves, and never in the way of Ctrl-C or the exit.

They run in daemon threads. Those of ``concurrent.futures`` are joined when the interpreter ends, so one hung call would
keep a process that was told to stop.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from typing import TypeVar

from iostack.stopping import refuse_if_stopped

T = TypeVar("T")
R = TypeVar("R")

_TICK_S = 0.2


def within(call: Callable[[], R], *, patience_s: float, progress: Callable[[], object] = lambda: None) -> R:
    """Return ``call()``; what it raises is raised here. A call that is given up goes on in its thread.

    Raises:
        TimeoutError: it took ``patience_s`` since it began or since ``progress()`` last gave another value.
        Stopped: nobody waits for this thread any more.
    """
    answer: Future[R] = Future()
    threading.Thread(target=_answer, args=(answer, call), name="iostack-call", daemon=True).start()
    seen, deadline = progress(), time.monotonic() + patience_s
    while not wait([answer], timeout=min(_TICK_S, patience_s)).done:
        refuse_if_stopped()
        if (now := progress()) != seen:
            seen, deadline = now, time.monotonic() + patience_s
        elif time.monotonic() >= deadline:
            raise TimeoutError(f"nothing came for {patience_s:g} s")
    return answer.result()


def in_threads(
    work: Callable[[T], R], items: Sequence[T], *, threads: int, tick: Callable[[], None] = lambda: None
) -> Iterator[tuple[int, R]]:
    """Yield (number, ``work(item)``) of all ``items`` as they get done; the first error is raised, the rest not begun.

    ``tick`` is called in the caller's thread several times a second while it waits.
    """
    numbers = iter(range(len(items)))
    lock, stopped = threading.Lock(), threading.Event()
    done: queue.SimpleQueue[tuple[int, Future[R]]] = queue.SimpleQueue()

    def run() -> None:
        while not stopped.is_set():
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            answer: Future[R] = Future()
            _answer(answer, lambda item=items[number]: work(item))  # type: ignore[misc]
            if answer.exception() is not None:
                stopped.set()
            done.put((number, answer))

    for _ in range(min(threads, len(items))):
        threading.Thread(target=run, name="iostack-count", daemon=True).start()
    try:
        for _ in items:
            while True:
                try:
                    number, answer = done.get(timeout=_TICK_S)
                    break
                except queue.Empty:
                    tick()
            yield number, answer.result()
    finally:
        stopped.set()


def _answer(answer: Future[R], call: Callable[[], R]) -> None:
    try:
        answer.set_result(call())
    except BaseException as error:  # noqa: BLE001 - whoever waits for the answer raises it
        answer.set_exception(error)
