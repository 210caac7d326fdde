"""What a run reports: ``metrics.jsonl`` with one line per step, and the figures on that line.

A run that was killed leaves lines after its last checkpoint, and perhaps half a line; resuming cuts the file back, so
that in the end it holds exactly one line per step.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from iostack.errors import RunError

DIGEST_BITS = 64


@dataclass(frozen=True)
class StepMetrics:
    """One line of ``metrics.jsonl``; sums over all ranks unless said."""

    step: int
    """Number of this step, from 1."""
    loss: float
    """Mean over the valid tokens."""
    grad_norm: float
    """Global norm of the gradient before clipping."""
    learning_rate: float
    tokens: int
    """Tokens with a loss."""
    seconds: float
    """Wall time of the step on rank 0, from asking for its batch on; saves, evaluations and callbacks are left out."""
    data_wait_s: float
    """Part of ``seconds`` that the slowest rank waited for its batch."""
    position: int
    """First position of the step in the sample stream."""
    samples_digest: str
    """Sum of the hashes of the identities of the step's samples, modulo 2^64, in hex: the same for any number of ranks."""
    tokens_per_s: float
    memory_bytes: int
    """Peak of the rank that holds most: allocated on the device, or resident on a CPU."""
    mfu: float | None = None
    """Share of the devices' peak arithmetic that the model's own operations reach; None where the peak is unknown."""


def digest_hex(total: int) -> str:
    """Return a sum of int64 hashes, wrapped to 64 bits, as hex."""
    return f"{total % (1 << DIGEST_BITS):016x}"


class JsonLines:
    """An append-only file of JSON objects with a ``step`` in each; one writer.

    Each line is handed to the kernel at once, so that it survives the death of the process; ``sync`` makes it survive
    that of the machine.
    """

    def __init__(self, path: Path, *, last_step: int) -> None:
        """Open for writing after the line of ``last_step``; lines of later steps, and half a line, are removed.

        Raises:
            RunError: a line is not what this class writes.
        """
        end = _end_of(path, last_step) if path.exists() else 0
        self._file = path.open("ab", buffering=0)
        self._file.truncate(end)

    def write(self, values: Mapping[str, Any]) -> None:
        """Append one object.

        Raises:
            RunError: the disk is full, or broken.
        """
        try:
            self._file.write(json.dumps(values).encode() + b"\n")
        except OSError as error:
            raise RunError(
                f"{self._file.name} cannot be written: {error.strerror}", hint="make room; the same command resumes"
            ) from error

    def sync(self) -> None:
        """Make all lines durable: do it before a checkpoint that relies on them."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def metrics_line(metrics: StepMetrics) -> dict[str, Any]:
    """Return the object to write for a step; JSON has no NaN, so figures that are none are null."""
    line = {key: value for key, value in asdict(metrics).items() if value is not None}
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in line.items()
    }


def _end_of(path: Path, last_step: int) -> int:
    """Return the offset behind the last whole line whose step is at most ``last_step``."""
    end = step = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                next_step = json.loads(line)["step"] if line.endswith(b"\n") else last_step + 1
            except (ValueError, KeyError, TypeError) as error:
                if step >= last_step:
                    break
                raise RunError(
                    f"{path}, line {number}, is not a line of metrics", hint="move the file away to go on without it"
                ) from error
            if next_step > last_step:
                break
            step = next_step
            end += len(line)
    return end
