"""Progress on stderr: a bar on a terminal, else a log line every few seconds."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

logger = logging.getLogger(__name__)

_LOG_EVERY_S = 5.0


class Show(Protocol):
    """Shows how much is done, and a note such as a rate."""

    def __call__(self, done: int, total: int, note: str = "", /) -> None: ...


@contextmanager
def show_progress(verb: str, noun: str) -> Iterator[Show]:
    """Yield a function to call with (done, total) and perhaps a note, as often as one likes."""
    if not sys.stderr.isatty():
        yield _log_lines(verb, noun)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    amount = (TextColumn(verb), BarColumn(), MofNCompleteColumn(), TextColumn(noun))
    columns = (*amount, TextColumn("{task.fields[note]}"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(verb, total=None, note="")
        yield lambda done, total, note="": bar.update(task, completed=done, total=total, note=note)


def _log_lines(verb: str, noun: str) -> Show:
    last = time.monotonic()

    def log(done: int, total: int, note: str = "", /) -> None:
        nonlocal last
        if time.monotonic() - last >= _LOG_EVERY_S:
            last = time.monotonic()
            logger.info("%s: %d of %d %s%s", verb, done, total, noun, note and f", {note}")

    return log
