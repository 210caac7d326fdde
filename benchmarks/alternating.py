"""Contenders in turn, several rounds, and how their figures are told: medians with the least and the most."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeVar

Figure = TypeVar("Figure")


class Speed(NamedTuple):
    """How fast one run was."""

    per_s: float
    """Of what was counted, in a wall second."""
    cpu_s: float
    """CPU seconds for each of what was counted."""


def alternately(contenders: Mapping[str, Callable[[], Figure]], rounds: int) -> dict[str, list[Figure]]:
    """Return the figures of every contender: all run once to warm up, then ``rounds`` times one after the other."""
    for run in contenders.values():
        run()
    figures: dict[str, list[Figure]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            figures[name].append(run())
    return figures


def timed(run: Callable[[], int]) -> Callable[[], Speed]:
    """Return a run that measures ``run``, which returns how much it did, in this process and all its threads."""

    def measured() -> Speed:
        wall, cpu = time.perf_counter(), time.process_time()
        amount = run()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        return Speed(amount / wall, cpu / amount)

    return measured


def spread(values: Sequence[float], form: str = ".2f") -> str:
    """Return the median with the least and the most."""
    median, least, most = (format(value, form) for value in (statistics.median(values), min(values), max(values)))
    return f"{median} (min {least}, max {most})"


def medians(speeds: Mapping[str, Sequence[Speed]]) -> dict[str, Speed]:
    """Return the median speed and the median of CPU seconds of every contender."""
    return {
        name: Speed(statistics.median(each.per_s for each in runs), statistics.median(each.cpu_s for each in runs))
        for name, runs in speeds.items()
    }


def tell(speeds: Mapping[str, Sequence[Speed]], unit: str, scale: float, cpu: str, cpu_scale: float) -> None:
    """Print a line for every contender: ``scale`` of what was counted are one ``unit``; ``cpu`` names scaled CPU seconds."""
    middle = medians(speeds)
    for name, runs in speeds.items():
        told = spread([each.per_s / scale for each in runs], ".1f" if middle[name].per_s < 100 * scale else ".0f")
        print(f"{name:18} {told} {unit}, {middle[name].cpu_s * cpu_scale:.2f} {cpu}")
