"""How fast a whole loader gives batches, and how long a training step of a given length would wait for them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from iostack.loader.loader import Batch, Loader
from iostack.loader.tasks.batch_bytes import batch_bytes

SHOW_EVERY_S = 0.25
_WAITED_SHARE = 0.01

Show = Callable[[str], None]


@dataclass
class Whole:
    """What the batches after the first one took; ``first_batch_s`` counts from before the corpus was opened."""

    first_batch_s: float
    steps: int = 0
    samples: int = 0
    bytes: int = 0
    wall_s: float = 0.0
    cpu_s: float = 0.0
    data_wait_s: float = 0.0
    wait_s: dict[str, float] = field(default_factory=dict)
    busy_s: dict[str, float] = field(default_factory=dict)
    last_batch: Batch = field(default_factory=dict)

    def per_s(self, amount: float) -> float:
        """Return how much that is in a second."""
        return amount / self.wall_s if self.wall_s else 0.0


@dataclass(frozen=True)
class Simulated:
    """Training steps of ``step_ms`` each: how many of them waited for data, and for which share of the time."""

    step_ms: float
    steps: int
    waited_steps: int
    wait_share: float
    wait_s: dict[str, float]


def take_batches(loader: Loader, started: float, steps: int | None, seconds: float | None, show: Show) -> Whole:
    """Take batches until ``steps`` or ``seconds`` are over, whichever comes first."""
    batches = iter(loader)
    batch = next(batches)
    begun = shown = time.perf_counter()
    whole = Whole(first_batch_s=begun - started)
    cpu_s, data_wait_s, before = _cpu_s(loader), loader.data_wait_s, loader.stages()
    for batch in batches:
        whole.steps += 1
        whole.samples += len(batch["sample_ids"])
        whole.bytes += batch_bytes(batch)
        now = time.perf_counter()
        whole.wall_s = now - begun
        if now - shown > SHOW_EVERY_S:
            shown = now
            show(f"the whole: {whole.steps:,} batches, {whole.per_s(whole.samples):,.0f} samples/s")
        if whole.steps == steps or (seconds is not None and whole.wall_s >= seconds):
            break
    whole.last_batch = batch
    whole.cpu_s = _cpu_s(loader) - cpu_s
    whole.data_wait_s = loader.data_wait_s - data_wait_s
    for stage, figures in loader.stages().items():
        if stage != "consumer":
            whole.wait_s[stage] = figures.wait_s - before[stage].wait_s
            whole.busy_s[stage] = figures.busy_s - before[stage].busy_s
    return whole


def _cpu_s(loader: Loader) -> float:
    """Return the CPU seconds of this process and, on Linux, of the loader's workers that run now."""
    seconds = time.process_time()
    for pid in loader.worker_pids:
        with suppress(OSError):  # it has just died, or there is no /proc
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            seconds += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return seconds


def simulate(loader: Loader, *, step_ms: float, seconds: float, show: Show) -> Simulated:
    """Take batches for ``seconds``, standing still for ``step_ms`` after each as a trainer does whose device computes.

    A step has waited if its batch came later than 1 % of its own length after it was asked for.
    """
    batches = iter(loader)
    next(batches)
    steps = waited_steps = 0
    begun = shown = time.perf_counter()
    data_wait_s, before = loader.data_wait_s, loader.stages()
    waited_s = data_wait_s
    while (now := time.perf_counter()) - begun < seconds or not steps:
        time.sleep(step_ms / 1000)
        if next(batches, None) is None:
            break
        steps += 1
        step_wait_s, waited_s = loader.data_wait_s - waited_s, loader.data_wait_s
        waited_steps += step_wait_s > _WAITED_SHARE * step_ms / 1000
        if now - shown > SHOW_EVERY_S:
            shown = now
            show(f"steps of {step_ms:g} ms: {waited_steps} of {steps} waited")
    wall_s = time.perf_counter() - begun
    wait_s = {
        stage: figures.wait_s - before[stage].wait_s
        for stage, figures in loader.stages().items()
        if stage != "consumer"
    }
    return Simulated(step_ms, steps, waited_steps, (loader.data_wait_s - data_wait_s) / wall_s, wait_s)
