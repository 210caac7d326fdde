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

# A state may be anybody's: beyond these it would take the machine down before anything else is noticed.
_MOST_LANES = 1 << 20
_MOST_THREADS = 4096
_MOST_STEPS = 1 << 62


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
            CheckpointError: it is not of a training run; names the field.
        """
        program, loader = _table(values, "program"), _table(values, "loader")
        _table(program, "backends", within="program.")
        _whole_number(program, "steps", 0, _MOST_STEPS, within="program.")
        _whole_number(_table(loader, "plan", within="loader."), "lanes", 1, _MOST_LANES, within="loader.plan.")
        return cls(program, loader, _whole_number(values, "threads", 1, _MOST_THREADS))


def _table(values: Mapping[str, Any], name: str, *, within: str = "") -> Mapping[str, Any]:
    value = values.get(name)
    if not isinstance(value, Mapping):
        raise _foreign(f"{within}{name}", "a table", values, name)
    return value


def _whole_number(values: Mapping[str, Any], name: str, least: int, most: int, *, within: str = "") -> int:
    value = values.get(name)
    if type(value) is not int or not least <= value <= most:
        raise _foreign(f"{within}{name}", f"a whole number from {least} to {most}", values, name)
    return value


def _foreign(field: str, wanted: str, values: Mapping[str, Any], name: str) -> CheckpointError:
    is_now = f"is {repr(values[name])[:40]}" if name in values else "is missing"
    return CheckpointError(
        f"the checkpoint is not of a training run: state.{field} {is_now}, and must be {wanted}",
        hint="was another program's checkpoint put there?",
    )


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
