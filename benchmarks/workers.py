"""A Python transform of 1 ms that holds the GIL, in two worker processes: iostack and torch's DataLoader against two perfect ones.

The perfect workers are two bare processes that do nothing but the transform, as often as there are samples; no loader can
be faster. All take the same JSONL samples, alternating, after one run of each to warm up. CPU seconds include all processes.

    python benchmarks/workers.py [--runs 7] [--samples 4000] [--batch-size 16] [--folder DIR]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from alternating import Speed, alternately, medians, tell

WORKERS, TRANSFORM_S = 2, 0.001


def transform(sample: dict[str, Any]) -> dict[str, Any]:
    """Hold the GIL for a millisecond of CPU time of this thread: contention and what runs beside it do not count as work."""
    end = time.thread_time() + TRANSFORM_S
    while time.thread_time() < end:
        pass
    return sample


def only_transform(count: int, barrier: Any) -> None:
    """Transform ``count`` samples once all are ready."""
    barrier.wait()
    for _ in range(count):
        transform({})
    barrier.wait()


def perfect(folder: Path, samples: int, batch_size: int) -> Iterator[None]:
    """Yield before and after two bare processes do all the work."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(WORKERS + 1)
    processes = [context.Process(target=only_transform, args=(samples // WORKERS, barrier)) for _ in range(WORKERS)]
    for process in processes:
        process.start()
    barrier.wait()
    yield
    barrier.wait()
    yield
    for process in processes:
        process.join()


def iostack_workers(folder: Path, samples: int, batch_size: int) -> Iterator[None]:
    """Yield once the workers run, and after ``samples`` more have come."""
    import workers as this_module  # the script itself is not importable by its workers

    import iostack

    loader = iostack.Loader(
        iostack.open_corpus(folder), batch_size=batch_size, workers=WORKERS, transforms=[this_module.transform]
    )
    with loader:
        yield from _steps(iter(loader), samples // batch_size)


class Samples:
    """The samples as a map-style dataset."""

    def __init__(self, folder: Path) -> None:
        self.lines = [line for path in sorted(folder.glob("*.jsonl")) for line in path.read_bytes().splitlines()]

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return transform(json.loads(self.lines[index]))


def torch_workers(folder: Path, samples: int, batch_size: int) -> Iterator[None]:
    """Yield once the workers run, and after ``samples`` more have come."""
    from torch.utils.data import DataLoader

    batches = iter(DataLoader(Samples(folder), batch_size=batch_size, shuffle=True, num_workers=WORKERS))  # type: ignore[arg-type, var-annotated]
    yield from _steps(batches, samples // batch_size)


def _steps(batches: Iterator[Any], num_batches: int) -> Iterator[None]:
    for _ in range(64):  # what ran ahead while the workers started must not count
        next(batches)
    yield
    for _ in range(num_batches):
        next(batches)
    yield


CONTENDERS: dict[str, Callable[[Path, int, int], Iterator[None]]] = {
    "perfect": perfect,
    "iostack": iostack_workers,
    "torch DataLoader": torch_workers,
}


def run_one(name: str, folder: Path, samples: int, batch_size: int) -> None:
    """Print (samples a second, CPU seconds per sample of all processes from start to end) of one contender."""
    phases = CONTENDERS[name](folder, samples, batch_size)
    next(phases)
    started = time.perf_counter()
    next(phases)
    seconds = time.perf_counter() - started
    for _ in phases:
        pass
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    print(json.dumps([samples / seconds, sum(each.ru_utime + each.ru_stime for each in usage) / samples]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--samples", type=int, default=4000)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--folder", type=Path, help="where the shards are made; a temporary folder by default")
    parser.add_argument("--only", choices=CONTENDERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        run_one(options.only, options.folder, options.samples, options.batch_size)
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for shard in range(8):
            rows = [{"n": shard * 5000 + row, "text": "some text " * 20} for row in range(5000)]
            (Path(folder) / f"{shard}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        arguments = ["--folder", folder, "--samples", str(options.samples), "--batch-size", str(options.batch_size)]

        def in_a_process(name: str) -> Speed:
            command = [sys.executable, __file__, *arguments, "--only", name]
            return Speed(*json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))

        speeds = alternately({name: partial(in_a_process, name) for name in CONTENDERS}, options.runs)
    tell(speeds, "samples/s", 1, "CPU ms per sample, starting included", 1e3)
    middle = medians(speeds)
    print(
        json.dumps(
            {f"{name} / perfect": round(each.per_s / middle["perfect"].per_s, 3) for name, each in middle.items()}
        )
    )


if __name__ == "__main__":
    main()
