"""Progress on stderr: a bar on a terminal, else a log line every few seconds."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

logger = logging.getLogger(__name__)

_LOG_EVERY_S = 5.0


@contextmanager
def show_progress(verb: str, noun: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a function to call with (done, total), as often as one likes."""
    if not sys.stderr.isatty():
        yield _log_lines(verb, noun)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(verb), BarColumn(), MofNCompleteColumn(), TextColumn(noun), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(verb, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _log_lines(verb: str, noun: str) -> Callable[[int, int], None]:
    last = time.monotonic()

    def log(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last >= _LOG_EVERY_S:
            last = time.monotonic()
            logger.info("%s: %d of %d %s", verb, done, total, noun)

    return log
