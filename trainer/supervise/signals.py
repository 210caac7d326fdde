"""SIGTERM and Ctrl-C as a request: finish the step, save, end. A second one ends at once."""

from __future__ import annotations

import signal
import sys
from types import FrameType, TracebackType
from typing import Any, Self


class StopRequest:
    """A context in which the first SIGTERM or SIGINT is remembered in ``signal`` instead of ending the process.

    Python runs handlers between two bytecodes of the main thread: a process that waits inside a collective notices the
    request when the collective ends. Use it from the main thread; elsewhere it does nothing.

    ``is_one_of_several``: after an error it stays in force. torchrun sends SIGTERM to the survivors of a lost rank at
    once, and they must live for long enough to say which rank it was.
    """

    def __init__(self, *, is_quiet: bool = False, is_one_of_several: bool = False) -> None:
        self.signal = 0
        self._is_quiet = is_quiet
        self._stays_after_error = is_one_of_several
        self._before: dict[int, Any] = {}

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.signal:
            self._restore()
            signal.raise_signal(number)
        self.signal = number
        if not self._is_quiet:
            name = signal.Signals(number).name
            sys.stderr.write(f"{name}: stopping after this step, saved; a second signal ends at once\n")

    def __enter__(self) -> Self:
        try:
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._remember)
        except ValueError:  # not the main thread
            self._before.clear()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is None or not self._stays_after_error:
            self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()


def exit_code_of(number: int) -> int:
    """Return the exit code that a shell gives to a process that a signal ended: 130 after Ctrl-C, 143 after SIGTERM."""
    return 128 + number
