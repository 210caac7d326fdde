"""Saves and loads the same sharded tensors with iostack and with torch's own checkpoints, in turn, and prints a table.

    python benchmarks/checkpoint.py --ranks 2 --gigabytes 1 --folder /tmp/bench

Each rank holds a row shard of every tensor. Wall seconds are the slowest rank's, CPU seconds (user and system) the sum
of all ranks. Loads find the files in the page cache. torch's are `dcp.save` and `dcp.load` with their defaults, which
have no checksums; its saves sync each file, as ours do.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SIZES = [4096 * 4096, 4096 * 1024, 4096]  # elements of a large matrix, a small one, and a norm


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def measure(action: Callable[[], object]) -> tuple[float, float]:
    """Return wall and CPU seconds of ``action``, with all ranks starting together."""
    import torch.distributed as dist

    dist.barrier()
    wall, cpu = time.perf_counter(), cpu_seconds()
    action()
    return time.perf_counter() - wall, cpu_seconds() - cpu


def run_rank(options: argparse.Namespace) -> None:
    import torch
    import torch.distributed as dist
    from torch.distributed.checkpoint.state_dict_loader import load as torch_load
    from torch.distributed.checkpoint.state_dict_saver import save as torch_save
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    from trainer.checkpoint import Checkpointer

    dist.init_process_group(
        "gloo", init_method=f"file://{options.folder}/meeting", rank=options.rank, world_size=options.ranks
    )
    mesh = init_device_mesh("cpu", (options.ranks,))
    tensors: dict[str, torch.Tensor] = {}
    num_bytes = 0
    while num_bytes < options.gigabytes * 1e9:
        size = SIZES[len(tensors) % len(SIZES)]
        rows = torch.randn(size // 1024, 1024) if size > 4096 else torch.randn(size)
        tensors[f"tensor.{len(tensors)}"] = distribute_tensor(rows, mesh, [Shard(0)], src_data_rank=None)
        num_bytes += size * 4
    checkpoints = Checkpointer(f"{options.folder}/iostack", keep=0)
    checkpoints.begin({})
    rows_out = []
    for turn in range(options.turns + 1):  # the first turn warms up
        theirs = f"{options.folder}/torch-{turn}"
        jobs: dict[str, Callable[[], object]] = {
            "save, iostack": lambda turn=turn: checkpoints.save(turn, tensors, {}, settings={}),  # type: ignore[misc]
            "save, torch": lambda theirs=theirs: torch_save(dict(tensors), checkpoint_id=theirs),  # type: ignore[misc]
            "load, iostack": lambda: checkpoints.load(tensors),
            "load, torch": lambda theirs=theirs: torch_load(dict(tensors), checkpoint_id=theirs),  # type: ignore[misc]
        }
        for name, job in jobs.items():
            wall, cpu = measure(job)
            if turn:
                rows_out.append((name, wall, cpu))
        dist.barrier()
        if options.rank == 0:
            shutil.rmtree(theirs)
            shutil.rmtree(f"{options.folder}/iostack/steps")
    print(json.dumps({"bytes": num_bytes, "rows": rows_out}))
    checkpoints.close()
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--folder", default=None, help="where to write; a temporary folder by default")
    parser.add_argument("--rank", type=int, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank is not None:
        run_rank(options)
        return
    folder = tempfile.mkdtemp(dir=options.folder)
    command = [sys.executable, __file__, *sys.argv[1:], "--folder", folder]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    try:
        ranks = [
            subprocess.Popen([*command, "--rank", str(rank)], stdout=subprocess.PIPE, text=True, env=environment)
            for rank in range(options.ranks)
        ]
        results = [json.loads(rank.communicate()[0].splitlines()[-1]) for rank in ranks]
    finally:
        shutil.rmtree(folder)
    report(results, Path(__file__).name, options)


def report(results: list[Any], name: str, options: argparse.Namespace) -> None:
    gigabytes = results[0]["bytes"] / 1e9
    print(f"{name}: {gigabytes:.2f} GB, {options.ranks} ranks, medians (min to max) of {options.turns} turns\n")
    print("| what | GB/s | CPU s per GB |\n| --- | --- | --- |")
    for what in dict.fromkeys(row[0] for row in results[0]["rows"]):
        turns = [
            list(zip(*turn)) for turn in zip(*[[r[1:] for r in result["rows"] if r[0] == what] for result in results])
        ]
        speeds = [gigabytes / max(walls) for walls, _ in turns]
        cpu = [sum(seconds) / gigabytes for _, seconds in turns]
        spread = f"{statistics.median(speeds):.2f} ({min(speeds):.2f} to {max(speeds):.2f})"
        print(f"| {what} | {spread} | {statistics.median(cpu):.2f} ({min(cpu):.2f} to {max(cpu):.2f}) |")


if __name__ == "__main__":
    main()
