"""Start the ranks of a test, wait for all, and leave none behind."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent
TIMEOUT_S = 90.0


def run_ranks(folder: Path, world_size: int, job: str) -> list[Any]:
    """Run a job of the worker on some ranks and return what each saved."""
    environment = os.environ | {
        "PYTHONPATH": str(HERE / "plugins"),
        "IOSTACK_PLUGINS": "two_stage_pipeline,sharded_step,sharded_parameters",
        "OMP_NUM_THREADS": "1",
    }
    logs = [folder / f"{rank}.log" for rank in range(world_size)]
    ranks = []
    for rank, log in enumerate(logs):
        command = [sys.executable, str(HERE / "parity_worker.py"), str(folder), str(rank), str(world_size), job]
        with log.open("wb") as output:
            ranks.append(subprocess.Popen(command, stdout=output, stderr=output, env=environment))
    try:
        deadline = time.monotonic() + TIMEOUT_S
        codes = [rank.wait(timeout=max(0.1, deadline - time.monotonic())) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    assert codes == [0] * world_size, "\n".join(log.read_text()[-3000:] for log in logs)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(world_size)]
