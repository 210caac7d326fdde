"""When a run is saved, and what of it besides its tensors."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

import iostack
from iostack.errors import CheckpointError
from trainer.checkpoint import Checkpointer
from trainer.checkpoint.exchange import Exchange
from trainer.metrics import JsonLines
from trainer.run import Run
from trainer.settings import parse_interval
from trainer.settings.show import plain_settings


@dataclass(frozen=True)
class RunState:
    """What a checkpoint holds of a run besides tensors and settings: JSON-safe, the same on every rank.

    ``loader`` is merged from all ranks. ``threads`` is torch's number per rank, on which the bits of sums depend.
    """

    program: Mapping[str, Any]
    loader: Mapping[str, Any]
    threads: int

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Return the state in a checkpoint.

        Raises:
            CheckpointError: it is not of a training run.
        """
        try:
            return cls(values["program"], values["loader"], int(values["threads"]))
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"the checkpoint is not of a training run: {error!r} in its state") from error


class Saver:
    """Decides when to save, and saves. Rank 0's clock counts where the interval is a time."""

    def __init__(self, run: Run, checkpoints: Checkpointer, exchange: Exchange, *, threads: int) -> None:
        self._run = run
        self._checkpoints = checkpoints
        self._exchange = exchange
        self._threads = threads
        self._every = parse_interval(run.settings.checkpoint.every)
        self._last_time = time.monotonic()

    def is_due(self, step: int) -> bool:
        """Whether this rank asks for a save after ``step``."""
        if self._every.steps:
            return step % self._every.steps == 0
        is_late = time.monotonic() - self._last_time >= self._every.seconds
        return bool(self._every.seconds) and is_late and self._run.world.rank == 0

    def save(self, lines: JsonLines | None) -> None:
        """Save this step, on all ranks together; ``lines`` are rank 0's metrics so far."""
        run = self._run
        loader_state = iostack.merge_states(self._exchange.gather(run.loader.state_dict()))
        if lines:
            lines.sync()  # no checkpoint without the lines of its steps
        report = self._checkpoints.save(
            run.step,
            run.program.tensors(),
            asdict(RunState(run.program.state(), loader_state, self._threads)),
            settings=plain_settings(run.settings),
        )
        self._last_time = time.monotonic()
        run.say(f"step {run.step}  saved {report.bytes / 1e6:.1f} MB in {report.seconds:.2f} s")
        for callback in run.callbacks:
            callback.on_save(run, run.step)
