"""Work in a thread that nobody waits for any more: what takes long looks now and then, and ends early.

owner of the thread ──stop.set()──> fetching, unpacking, waiting for a lock: refuse_if_stopped() ──> Stopped, and its
                                    unfinished files go with it
"""

from __future__ import annotations

import threading

from iostack.errors import IostackError


class Stopped(IostackError):
    """The work was not needed any more; nobody waits for its result."""


class _Here(threading.local):
    stop: threading.Event | None = None


_here = _Here()


def stop_this_thread_by(stop: threading.Event) -> None:
    """Have what this thread does from now on end early once ``stop`` is set."""
    _here.stop = stop


def refuse_if_stopped() -> None:
    """Return at once, unless this thread is to stop.

    Raises:
        Stopped: it is.
    """
    if _here.stop is not None and _here.stop.is_set():
        raise Stopped("it is not needed any more")
