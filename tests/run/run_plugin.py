"""Callbacks for tests of runs: stop after a step, fail in a step, and write down what was called."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping
from typing import Any

import iostack
from trainer.contracts import Callback


class Stop(Callback):
    """SIGTERM to one's own process after a step, on one rank: as a scheduler does it."""

    def __init__(self, *, after: int, rank: int = 0) -> None:
        self.after, self.rank = after, rank

    def on_step_end(self, run: Any, report: Any) -> None:
        # The request is seen by the next step.
        if report.step == self.after - 1 and run.world.rank == self.rank:
            signal.raise_signal(signal.SIGTERM)


class Fail(Callback):
    """An error in a step, of one rank or of all."""

    def __init__(self, *, after: int, ranks: list[int], once: bool = False) -> None:
        self.after, self.ranks = after, ranks
        self.is_off = once and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"

    def on_step_end(self, run: Any, report: Any) -> None:
        if not self.is_off and report.step == self.after and run.world.rank in self.ranks:
            raise ValueError("the callback is broken")


class FailAtEnd(Callback):
    """An error at the end of the run."""

    def on_run_end(self, run: Any) -> None:
        raise ValueError("the end is broken")


class Journal(Callback):
    """Writes one line per call."""

    def __init__(self, *, path: str) -> None:
        self.path = path

    def _note(self, run: Any, *words: object) -> None:
        if run.world.rank == 0:
            with open(self.path, "a") as file:
                print(*words, file=file)

    def on_run_start(self, run: Any) -> None:
        self._note(run, "start", run.step)

    def on_step_end(self, run: Any, report: Any) -> None:
        self._note(run, "step", report.step)

    def on_evaluation(self, run: Any, report: Any) -> None:
        self._note(run, "evaluation", report.step)

    def on_save(self, run: Any, step: int) -> None:
        self._note(run, "save", step)

    def on_run_end(self, run: Any) -> None:
        self._note(run, "end", run.step)


@iostack.hookimpl
def iostack_callbacks() -> Mapping[str, Callable[..., Callback]]:
    return {"stop": Stop, "fail": Fail, "fail_at_end": FailAtEnd, "journal": Journal}
