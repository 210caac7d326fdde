"""Threads of a loader: they start with the first work, end with ``close``, and are never waited for without a deadline."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, ParamSpec, TypeVar

from iostack.errors import CorpusError

log = logging.getLogger("iostack.loader")

_PATIENCE_S = 600.0
_SLOWEST_BYTES_PER_S = 1 << 20
_CLOSING_S = 30.0

Result = TypeVar("Result")
Arguments = ParamSpec("Arguments")


class Threads:
    """Up to ``number`` threads named ``iostack-NAME``. Belongs to one thread, or to who holds the owner's lock."""

    def __init__(self, number: int, name: str) -> None:
        self._number = number
        self._name = name
        self._pool: ThreadPoolExecutor | None = None
        self._unfinished: set[Future[Any]] = set()

    def submit(
        self, work: Callable[Arguments, Result], *arguments: Arguments.args, **options: Arguments.kwargs
    ) -> Future[Result]:
        """Return the future of ``work(*arguments)``; starts threads if there are none."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._number, thread_name_prefix=f"iostack-{self._name}")
        future = self._pool.submit(work, *arguments, **options)
        self._unfinished.add(future)
        future.add_done_callback(self._unfinished.discard)
        return future

    def close(self) -> None:
        """Drop the work that has not begun and wait for the rest; more work later starts new threads."""
        pool, self._pool = self._pool, None
        if pool is None:
            return
        pool.shutdown(wait=False, cancel_futures=True)
        _, stuck = wait(list(self._unfinished), timeout=_CLOSING_S)
        if stuck:
            log.warning("%d %s threads did not end in %.0f s and are left behind", len(stuck), self._name, _CLOSING_S)
        else:
            pool.shutdown(wait=True)


def patience_s(num_bytes: int) -> float:
    """Return how long to wait for work that may have to fetch ``num_bytes``: 10 minutes, and more below 1 MiB/s."""
    return _PATIENCE_S + num_bytes / _SLOWEST_BYTES_PER_S


def wait_for(future: Future[Result], *, deadline_s: float, awaited: Callable[[], str]) -> Result:
    """Return the result of ``future``, or raise what it raised.

    Raises:
        CorpusError: it did not come in ``deadline_s``; ``awaited()`` says what did not.
    """
    try:
        return future.result(timeout=deadline_s)
    except TimeoutError as error:
        if future.done():  # the work itself timed out
            raise
        raise CorpusError(
            f"{awaited()} did not come in {deadline_s:.0f} s",
            hint="look at the storage, the disk, and the transforms: one of them hangs",
        ) from error
