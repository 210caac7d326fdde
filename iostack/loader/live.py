"""The loaders of this process that have been iterated and are still there: for metrics, and to be closed at the end."""

from __future__ import annotations

import atexit
import threading
import weakref
from contextlib import suppress
from itertools import count
from typing import TYPE_CHECKING

from iostack.forks import renew_in_children

if TYPE_CHECKING:
    from iostack.loader.loader import Loader

_numbers = count()


class _Live:
    """Thread-safe, and in a forked child too."""

    def __init__(self) -> None:
        self._loaders: weakref.WeakSet[Loader] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._is_closing_at_exit = False
        renew_in_children(self)

    def add(self, loader: Loader) -> None:
        with self._lock:
            self._loaders.add(loader)
            if not self._is_closing_at_exit:  # what is registered last runs first, before threads are waited for
                atexit.register(_close_all)
                self._is_closing_at_exit = True

    def all(self) -> list[Loader]:
        with self._lock:
            return sorted(self._loaders, key=lambda loader: loader.number)

    def renew_after_fork(self) -> None:
        self._lock = threading.Lock()


_live = _Live()


def next_number() -> int:
    """Return a number that tells a loader apart from the others of this process."""
    return next(_numbers)


def note_iterated(loader: Loader) -> None:
    """Count a loader among the live ones as long as anything refers to it."""
    _live.add(loader)


def live_loaders() -> list[Loader]:
    """Return the loaders of this process that have been iterated and are still there, oldest first."""
    return _live.all()


def _close_all() -> None:
    """Close what a script left open, while the modules that closing needs are still there."""
    for loader in live_loaders():
        with suppress(ValueError):  # another thread stands inside its iterator, and ends with the process
            loader.close()
