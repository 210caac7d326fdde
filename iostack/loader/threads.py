"""Threads of a loader: they start with the first work, end with ``close``, and are never waited for without a deadline.

The pool of ``concurrent.futures`` waits for its threads without end when the interpreter exits: a fetch that hangs would
keep a process alive whose error has long been reported.
"""

from __future__ import annotations

import atexit
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from iostack import logs
from iostack.errors import CorpusError
from iostack.stopping import stop_this_thread_by

log = logs.logger("iostack.loader")

_PATIENCE_S = 600.0
_SLOWEST_BYTES_PER_S = 1 << 20
_CLOSING_S = 10.0
_LOOK_EVERY_S = 0.25
"""A signal that comes just before a wait begins does not interrupt it: Python sees Ctrl-C when the wait ends."""

Result = TypeVar("Result")
Work = tuple[Future[Any], Callable[..., Any], tuple[Any, ...]]


class Threads:
    """Up to ``number`` threads named ``iostack-NAME``. Belongs to one thread, or to who holds the owner's lock."""

    def __init__(self, number: int, name: str) -> None:
        self._number = number
        self._name = name
        self._queue: SimpleQueue[Work | None] = SimpleQueue()
        self._stop = threading.Event()
        self._running: list[threading.Thread] = []

    def submit(self, work: Callable[..., Result], *arguments: Any) -> Future[Result]:
        """Return the future of ``work(*arguments)``; starts a thread if there may be more."""
        future: Future[Result] = Future()
        self._queue.put((future, work, arguments))
        if len(self._running) < self._number:
            name = f"iostack-{self._name}-{len(self._running)}"
            thread = threading.Thread(target=_serve, args=(self._queue, self._stop), name=name, daemon=True)
            self._running.append(thread)  # first: Ctrl-C may interrupt its start, and `close` must end it too
            _open.add(self)
            thread.start()
        return future

    def close(self) -> None:
        """Drop the work that has not begun and wait for the rest, which may end early; more work later starts new threads."""
        queue, running = self._queue, self._running
        self._stop.set()
        self._queue, self._running, self._stop = SimpleQueue(), [], threading.Event()
        _end(queue, len(running))
        deadline = time.monotonic() + _CLOSING_S
        for thread in running:
            with suppress(RuntimeError):  # its start was interrupted; it ends as soon as it runs
                thread.join(timeout=max(0.0, deadline - time.monotonic()))
        if stuck := [thread.name for thread in running if thread.is_alive()]:
            log.warning("%s did not end in %g s and is left behind", ", ".join(stuck), _CLOSING_S)

    def __del__(self) -> None:
        if self._running:
            _end(self._queue, len(self._running))


_open: weakref.WeakSet[Threads] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    for threads in list(_open):
        threads.close()


def _serve(queue: SimpleQueue[Work | None], stop: threading.Event) -> None:
    """Do what comes through the queue, until None does."""
    stop_this_thread_by(stop)
    while (item := queue.get()) is not None:
        future, work, arguments = item
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(work(*arguments))
            except BaseException as error:  # noqa: BLE001 - who waits for the future meets it
                future.set_exception(error)
        del item, future, work, arguments  # a thread that waits for work holds no batch


def _end(queue: SimpleQueue[Work | None], num_threads: int) -> None:
    with suppress(Empty):
        while (item := queue.get_nowait()) is not None:
            item[0].cancel()
    for _ in range(num_threads):
        queue.put(None)


def patience_s(num_bytes: int) -> float:
    """Return how long to wait for work that may have to fetch ``num_bytes``: 10 minutes, and more below 1 MiB/s."""
    return _PATIENCE_S + num_bytes / _SLOWEST_BYTES_PER_S


def wait_for(future: Future[Result], *, deadline_s: float, awaited: Callable[[], str]) -> Result:
    """Return the result of ``future``, or raise what it raised.

    Raises:
        CorpusError: it did not come in ``deadline_s``; ``awaited()`` says what did not.
    """
    deadline = time.monotonic() + deadline_s
    while True:
        try:
            return future.result(timeout=min(deadline_s, _LOOK_EVERY_S))
        except TimeoutError as error:
            if future.done():
                if future.exception() is error:  # the work itself timed out
                    raise
            elif time.monotonic() >= deadline:
                raise CorpusError(
                    f"{awaited()} did not come in {deadline_s:.0f} s",
                    hint="look at the storage, the disk, and the transforms: one of them hangs",
                ) from error
