"""Ctrl-C on the command line: soon over, and noticed even where a library swallows it half-way through its import.

An interpreter that has imported torch takes 0.5 s to take itself apart. Nothing in there is ours: what must not stay behind goes
before, with the command itself and what is registered with ``atexit``.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn


class Interrupts:
    """The handler of Ctrl-C in a process of the command line; it raises ``KeyboardInterrupt``, as Python's own does."""

    def __init__(self) -> None:
        self.came = False
        """Whether one has come."""
        self.nothing_has_begun = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Handle one."""
        self.came = True
        if self.nothing_has_begun:
            end_at_once(130)
        signal.default_int_handler(number, frame)

    def install(self) -> None:
        """Handle all from now on, unless somebody else does, or they are ignored."""
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self)


@contextmanager
def nothing_has_begun() -> Iterator[None]:
    """Have a Ctrl-C inside end the process of a command at once, where it imports libraries and does nothing else."""
    handler = signal.getsignal(signal.SIGINT)
    if not isinstance(handler, Interrupts):
        yield
        return
    handler.nothing_has_begun = True
    try:
        yield
    finally:
        handler.nothing_has_begun = False


def end_at_once(code: int) -> NoReturn:
    """End this process: run what is registered for its end, and leave the rest to the system."""
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):  # its reader has gone
            continue
    os._exit(code)
