"""What a fork must not cut in two: locks that another thread holds at that moment stay locked in the child for ever.

before the fork      wait until no thread writes a line to the handlers of iostack's logs
in the child         new locks for what asked for them; logging itself renews those of its handlers
"""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections.abc import Iterator
from typing import Protocol

_LOGS = "iostack"
_PATIENCE_S = 1.0
"""For a line being written; whose handler waits for the forking thread is not waited for longer."""


class Renewed(Protocol):
    """Something with locks, or with clients that must not be shared with a child."""

    def renew_after_fork(self) -> None:
        """Replace the locks; runs in the child, before anything else there, and must not wait or fail."""
        ...


_renewed: weakref.WeakSet[Renewed] = weakref.WeakSet()
_forking = threading.local()
"""The handlers that the thread that forks holds meanwhile."""


def renew_in_children(thing: Renewed) -> None:
    """Have ``thing`` renewed in every child that is forked while it lives."""
    _renewed.add(thing)


def _renew_all() -> None:
    _forking.held = []
    for thing in list(_renewed):
        thing.renew_after_fork()


def _hold_handlers() -> None:
    """Let no thread be inside a stream that iostack logs to: its buffer has a lock of its own, which nobody can renew."""
    _forking.held = [handler for handler in set(_handlers()) if _acquire(handler)]


def _release_handlers() -> None:
    for handler in _forking.held:
        handler.release()
    _forking.held = []


def _handlers() -> Iterator[logging.Handler]:
    for name in list(logging.root.manager.loggerDict):
        logger: logging.Logger | None = logging.getLogger(name) if f"{name}.".startswith(f"{_LOGS}.") else None
        while logger is not None:
            yield from logger.handlers
            logger = logger.parent if logger.propagate else None


def _acquire(handler: logging.Handler) -> bool:
    return handler.lock is not None and handler.lock.acquire(timeout=_PATIENCE_S)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_hold_handlers, after_in_parent=_release_handlers, after_in_child=_renew_all)
