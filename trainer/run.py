"""A training run under way: what callbacks, evaluations and saves see of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import iostack
from trainer.contracts import Callback
from trainer.program import Program
from trainer.progress import RunProgress
from trainer.run_folder import RunFolder
from trainer.settings import Settings
from trainer.supervise.world import World


@dataclass
class Run:
    """A training run under way, as callbacks see it. ``folder`` is None on all ranks but 0."""

    settings: Settings
    world: World
    program: Program
    loader: iostack.Loader
    folder: RunFolder | None
    callbacks: Sequence[Callback]
    progress: RunProgress
    step: int
    """Steps made so far, also those before a resume."""

    def say(self, text: str) -> None:
        """Print a line of progress, on rank 0."""
        self.progress.say(text)

    def evaluated(self, report: Any) -> None:
        """Tell all callbacks of an evaluation."""
        for callback in self.callbacks:
            callback.on_evaluation(self, report)
