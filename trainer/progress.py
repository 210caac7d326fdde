"""Progress for people: a log line every few seconds, and a live bar where rank 0 has a terminal. All on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from iostack.loader.metering.meter import StageFigures
from trainer.metrics import StepMetrics
from trainer.observing import Waits

_LOG_EVERY_S = 5.0
_WORTH_NAMING = 0.005
"""Share of the time from which on the log names the stage that was waited for."""


class RunProgress:
    """A context in which the steps of a run are shown; silent on ranks other than 0."""

    def __init__(self, *, first_step: int, total_steps: int, is_shown: bool) -> None:
        self._total_steps = total_steps
        self._is_shown = is_shown
        self._last_logged = time.monotonic()
        self._since: list[StepMetrics] = []
        self._waits = Waits()
        self._bar: Progress | None = None
        self._task = TaskID(0)
        console = Console(stderr=True)
        if is_shown and console.is_terminal and not console.is_dumb_terminal:
            self._bar = Progress(
                TextColumn("step"),
                MofNCompleteColumn(),
                BarColumn(),
                TextColumn("{task.fields[figures]}"),
                TimeRemainingColumn(),
                console=console,
                transient=True,
            )
            self._task = self._bar.add_task("steps", total=total_steps, completed=first_step, figures="")

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar:
            self._bar.stop()

    def say(self, text: str) -> None:
        """Print one line, above the bar if there is one."""
        if self._is_shown:
            sys.stderr.write(text + "\n")
            sys.stderr.flush()

    def show(self, metrics: StepMetrics, stages: Callable[[], Mapping[str, StageFigures]]) -> None:
        """Take note of a step, and of what ``stages()`` of this rank's loader are by then.

        It is logged if it is the first or the last, or if the last line is some seconds old.
        """
        if not self._is_shown:
            return
        self._since.append(metrics)
        if self._bar:
            figures = f"loss {metrics.loss:.4f}  {_short(metrics.tokens_per_s)} tokens/s"
            self._bar.update(self._task, completed=metrics.step, figures=figures)
        now = time.monotonic()
        is_edge = metrics.step in (1, self._total_steps)
        if is_edge or now - self._last_logged >= _LOG_EVERY_S:
            slowest = self._waits.slowest_since({name: figures.wait_s for name, figures in stages().items()})
            self.say(self._log_line(metrics, slowest, elapsed_s=now - self._last_logged))
            self._since.clear()
            self._last_logged = now

    def _log_line(self, metrics: StepMetrics, slowest: str | None, *, elapsed_s: float) -> str:
        """Speed and waiting since the last line, and the stage that was waited for most; ``elapsed_s`` also counts saves and evaluations."""
        seconds = sum(step.seconds for step in self._since)
        wait_share = sum(step.data_wait_s for step in self._since) / seconds
        tokens_per_s = sum(step.tokens for step in self._since) / seconds
        left_s = (self._total_steps - metrics.step) * max(seconds, elapsed_s) / len(self._since)
        parts = [
            f"step {metrics.step}/{self._total_steps}",
            f"loss {metrics.loss:.4f}",
            f"{_short(tokens_per_s)} tokens/s",
            f"data wait {100 * wait_share:.1f} %"
            + (f" ({slowest})" if slowest and wait_share >= _WORTH_NAMING else ""),
            f"ETA {_duration(left_s)}",
        ]
        if metrics.mfu is not None:
            parts.insert(3, f"MFU {100 * metrics.mfu:.1f} %")
        return "  ".join(parts)


def _short(number: float) -> str:
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if number >= limit:
            return f"{number / (1e3 if unit == 'k' else limit):.1f}{unit}"
    return f"{number:.0f}"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{seconds:02}s" if minutes else f"{seconds}s"
