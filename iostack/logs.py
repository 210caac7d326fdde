"""Loggers whose lines no fork cuts in two.

Python renews the locks of logging's handlers in a forked child, but not those inside the buffers of their streams: a child
that is forked while a thread writes a line would wait for ever at its own first line. So no fork begins meanwhile.
"""

from __future__ import annotations

import logging
import os
import threading
from typing import Any

_PATIENCE_S = 1.0
"""For a line being written; a handler that itself waits for the forking thread is not waited for longer."""

_writing = threading.RLock()


class _Forking(threading.local):
    def __init__(self) -> None:
        self.held: list[bool] = []
        """For each fork that this thread has begun, one inside the other, whether it holds the lock."""


_forking = _Forking()


class _Logger(logging.LoggerAdapter[logging.Logger]):
    def log(self, level: int, msg: object, *args: object, **options: Any) -> None:
        if self.isEnabledFor(level):
            options["stacklevel"] = options.get("stacklevel", 1) + 1  # the line is the caller's
            with _writing:
                super().log(level, msg, *args, **options)


def logger(name: str) -> logging.LoggerAdapter[logging.Logger]:
    """Return what logs to ``logging.getLogger(name)``, in any thread."""
    return _Logger(logging.getLogger(name), {})


def _before() -> None:
    _forking.held.append(False)
    _forking.held[-1] = _writing.acquire(timeout=_PATIENCE_S)


def _in_parent() -> None:
    if _forking.held.pop():
        _writing.release()


def _in_child() -> None:
    global _writing
    _writing = threading.RLock()
    _forking.held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)
