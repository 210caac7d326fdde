"""Starts the ranks of a program of ``programs.py`` as real processes, and returns what each of them printed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

PROGRAMS = Path(__file__).with_name("programs.py")


def run_ranks(program: str, world: int, folder: Path, *arguments: str, timeout_s: float = 100.0) -> list[Any]:
    """Run ``program`` on ``world`` ranks that meet in ``folder``; returns the JSON that each printed last."""
    meeting = folder / f"meeting-{program}-{world}-{len(list(folder.glob('meeting-*')))}"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error", str(PROGRAMS), program, str(world), str(meeting), str(folder), *arguments]
    ranks = [
        subprocess.Popen(
            [*command, f"--rank={rank}"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        for rank in range(world)
    ]
    try:
        outputs = [rank.communicate(timeout=timeout_s) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    failed = [f"rank {n}: {err[-3000:]}" for n, (rank, (_, err)) in enumerate(zip(ranks, outputs)) if rank.returncode]
    assert not failed, "\n".join(failed)
    return [json.loads(out.splitlines()[-1]) for out, _ in outputs]
