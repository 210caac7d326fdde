"""Steps at which the loss of a run leaps, found in its ``metrics.jsonl``."""

from __future__ import annotations

import json
import math
import statistics
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iostack.errors import UsageError

_BEFORE, _LEAST_BEFORE, _TIMES = 50, 8, 8.0
_MOST_POSITION = 1 << 62


@dataclass(frozen=True)
class Spike:
    """A step whose loss lies far above those before; ``position`` is the first of its batch."""

    step: int
    position: int
    loss: float
    median: float


def find_spikes(path: Path) -> list[Spike]:
    """Return the steps whose loss is no number, or above the median of up to 50 steps before by 8 times their spread.

    The spread is the median absolute deviation, and at least a hundredth of the median.

    Raises:
        UsageError: the file cannot be read, or a line has no step, position and loss.
    """
    before: deque[float] = deque(maxlen=_BEFORE)
    spikes: list[Spike] = []
    for step, position, loss in _read(path):
        median = statistics.median(before) if before else loss
        spread = max(statistics.median(abs(each - median) for each in before) if before else 0.0, abs(median) / 100)
        if not math.isfinite(loss) or (len(before) >= _LEAST_BEFORE and loss > median + _TIMES * spread):
            spikes.append(Spike(step, position, loss, median))
        else:
            before.append(loss)
    return spikes


def positions_of(path: Path) -> dict[int, int]:
    """Return the first position of every step of a run; for a run may have changed its batch size."""
    return {step: position for step, position, _ in _read(path)}


def _read(path: Path) -> Iterator[tuple[int, int, float]]:
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {error}", hint="name the metrics.jsonl of a run") from error
    for number, line in enumerate(lines, start=1):
        try:
            table: dict[str, Any] = json.loads(line)
            step, position, loss = int(table["step"]), int(table["position"]), table["loss"]
            if step < 1 or not 0 <= position < _MOST_POSITION:
                raise ValueError(f"step {step} at position {position}")
            yield step, position, math.nan if loss is None else float(loss)
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise UsageError(
                f"line {number} of {path} is no line of metrics: {error!r}", hint="name the metrics.jsonl of a run"
            ) from error
