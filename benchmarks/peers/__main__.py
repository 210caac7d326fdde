"""iostack against its peers: the same data, each contender in a process of its own on two cores, in turn, several rounds.

    python -m benchmarks.peers tokens|images|decoded|texts [--rounds 5] [--seconds 4] [--folder DIR] [--only NAME ...]

A process warms up for a second after its first batch, then counts for ``--seconds``. Printed as a Markdown table: medians with
the least and the most, CPU seconds of the process and its children, the time from its start to the first batch, and its peak
of memory that is not backed by files. Needs the peers: pip install -c constraints.txt --group bench (see benchmarks/README.md).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.peers.contenders import CONTENDERS, DATA, UNITS

_WARM_UP_S = 1.0
_CORES = 2


def measure(work: str, contender: str, folder: Path, seconds: float, started: float) -> dict[str, float]:
    """Run one contender in this process."""
    batches = CONTENDERS[work][contender](folder)
    next(batches)
    first_batch_s = time.time() - started
    begun = time.perf_counter()
    while time.perf_counter() - begun < _WARM_UP_S:
        next(batches)
    amount, cpu_s, begun = 0, _cpu_s(), time.perf_counter()
    while (wall_s := time.perf_counter() - begun) < seconds:
        amount += sum(next(batches) for _ in range(4))
    return {
        "per_s": amount / wall_s,
        "cpu_s": (_cpu_s() - cpu_s) / wall_s,
        "first_batch_s": first_batch_s,
        "anonymous_bytes": float(_anonymous_bytes()),
    }


def _cpu_s() -> float:
    """Return the CPU seconds of this process and of the children that run now."""
    ticks = 0
    for pid in (os.getpid(), *_children(os.getpid())):
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _children(pid: int) -> list[int]:
    found: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, path.read_text().split()):
            found += [child, *_children(child)]
    return found


def _anonymous_bytes() -> int:
    total = 0
    for pid in (os.getpid(), *_children(os.getpid())):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(("RssAnon:", "RssShmem:")):
                total += int(line.split()[1]) << 10
    return total


def in_a_process(work: str, contender: str, folder: Path, seconds: float) -> dict[str, float] | str:
    """Return what a fresh process measured, or the last line of why it did not."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.peers", work, "--child", contender]
    command += ["--folder", str(folder), "--seconds", str(seconds), "--started", str(time.time())]
    cores = set(sorted(os.sched_getaffinity(0))[:_CORES])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "IOSTACK_CACHE": str(folder / ".cache"), "HF_HUB_OFFLINE": "1"}
    try:
        done = subprocess.run(
            command,
            check=False,
            capture_output=True,
            text=True,
            timeout=60 + 10 * seconds,
            env=environment,
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )
    except subprocess.TimeoutExpired:
        return "it did not end in time"
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    return dict(json.loads(lines[-1])) if lines else (done.stderr.strip().splitlines() or ["it failed"])[-1]


def table(work: str, results: dict[str, list[dict[str, float]]], failures: dict[str, str]) -> str:
    """Return the results as a Markdown table, fastest first."""
    unit, scale = UNITS[work]
    lines = [
        f"| contender | {unit} (least to most) | share of iostack | CPU s per s | first batch s | anonymous MB |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    medians = {name: statistics.median(each["per_s"] for each in runs) for name, runs in results.items() if runs}
    for name in sorted(medians, key=lambda name: -medians[name]):
        runs = results[name]
        speeds = [each["per_s"] / scale for each in runs]
        middle = {key: statistics.median(each[key] for each in runs) for key in runs[0]}
        digits = 0 if medians[name] / scale >= 100 else 1
        lines.append(
            f"| {name} | {medians[name] / scale:,.{digits}f} ({min(speeds):,.{digits}f} to {max(speeds):,.{digits}f})"
            f" | {medians[name] / medians.get('iostack', medians[name]):.3f} | {middle['cpu_s']:.2f}"
            f" | {middle['first_batch_s']:.2f} | {middle['anonymous_bytes'] / 1e6:,.0f} |"
        )
    return "\n".join([*lines, *(f"\n{name}: {reason}" for name, reason in failures.items())])


def _versions() -> str:
    names = [
        "torch",
        "numpy",
        "pyarrow",
        "litdata",
        "mosaicml-streaming",
        "webdataset",
        "datasets",
        "grain",
        "spdl-core",
    ]
    found = []
    for name in names:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"{name} not installed")
    return f"Python {platform.python_version()}, {', '.join(found)}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", choices=CONTENDERS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--folder", type=Path, help="where the data is kept; a temporary folder by default")
    parser.add_argument("--only", nargs="*", help="these contenders alone")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--started", type=float, default=0.0, help=argparse.SUPPRESS)
    options: Any = parser.parse_args(arguments)
    if options.child:
        print(
            json.dumps(measure(options.work, options.child, options.folder, options.seconds, options.started)),
            flush=True,
        )
        os._exit(0)  # endless generators of peers end with their process
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.folder or Path(temporary)).absolute() / DATA[options.work]
        if not folder.exists():
            print(f"writing the data to {folder}", file=sys.stderr)
            subprocess.run(
                [sys.executable, "-W", "ignore", "-m", "benchmarks.peers.data", DATA[options.work], str(folder)],
                check=True,
                stdout=subprocess.DEVNULL,
            )
        names = [name for name in CONTENDERS[options.work] if not options.only or name in options.only]
        results: dict[str, list[dict[str, float]]] = {name: [] for name in names}
        failures: dict[str, str] = {}
        for turn in range(options.rounds):
            for name in names:
                found = in_a_process(options.work, name, folder, options.seconds)
                print(f"round {turn + 1}, {name}: {found}", file=sys.stderr)
                if isinstance(found, str):
                    failures[name] = found
                else:
                    results[name].append(found)
        print(f"{_versions()}; {_CORES} cores, {options.rounds} rounds of {options.seconds:g} s\n")
        print(table(options.work, results, failures))


if __name__ == "__main__":
    main()
