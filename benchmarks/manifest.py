"""A corpus of a million uneven shards and ten billion samples: time and memory until a loader is ready in its middle.

Only the manifest exists; no shard is opened. Each run is a process of its own that has imported torch and iostack before
the clock starts. Ready means: corpus opened, loader built, state restored, and the shards and rows of the next batch known.

    python benchmarks/manifest.py [--runs 7]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

NUM_SHARDS, NUM_SAMPLES, SEQ_LEN, BATCH_SIZE = 1_000_000, 10_000_000_000, 2048, 8


def write_manifest(folder: Path) -> None:
    """Write the sidecar manifest of a corpus of token shards that does not exist."""
    from iostack.corpus.manifest import manifest_from_columns

    random = np.random.default_rng(0)
    samples = random.integers(1, 2 * NUM_SAMPLES // NUM_SHARDS, NUM_SHARDS)
    samples[-1] += max(0, NUM_SAMPLES - int(samples.sum()))
    tokens = samples * SEQ_LEN + random.integers(1, SEQ_LEN, NUM_SHARDS)
    paths = [f"part-{number // 1000:04d}/{number:08d}.bin" for number in range(NUM_SHARDS)]
    (folder / ".iostack").mkdir()
    manifest = manifest_from_columns(format="tokens", paths=paths, bytes=tokens * 2, samples=samples, tokens=tokens)
    (folder / ".iostack" / "manifest.arrow").write_bytes(manifest.to_bytes())


def measure(folder: Path) -> dict[str, float]:
    """Return seconds and bytes of one fresh start in the middle of the corpus, in this process."""
    import pyarrow.ipc  # noqa: F401
    import torch  # noqa: F401

    import iostack
    import iostack.loader.loader
    import iostack.registry

    iostack.registry.registry()
    before, wall, cpu = _memory(), time.perf_counter(), time.process_time()
    corpus = iostack.open_corpus(folder)
    opened = time.perf_counter() - wall
    loader = iostack.Loader(corpus, batch_size=BATCH_SIZE, seq_len=SEQ_LEN)
    position = NUM_SAMPLES // 2 // BATCH_SIZE * BATCH_SIZE
    loader.load_state_dict(loader.state_dict() | {"position": position})
    built = time.perf_counter() - wall
    plan = loader.plan.sources[0].indexed_plan(loader.lanes)
    plan.locate(np.arange(position, position + BATCH_SIZE))
    return {
        "opened_s": opened,
        "built_s": built,
        "ready_s": time.perf_counter() - wall,
        "cpu_s": time.process_time() - cpu,
        "anonymous_mb": (_memory()["RssAnon"] - before["RssAnon"]) / 1e3,
        "peak_mb": (_memory()["VmHWM"] - before["VmRSS"]) / 1e3,
    }


def _memory() -> dict[str, int]:
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines() if line.endswith(" kB"))
    return {words[0].rstrip(":"): int(words[1]) for words in lines}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure)))
        return
    with tempfile.TemporaryDirectory() as name:
        write_manifest(Path(name))
        command = [sys.executable, __file__, "--measure", name]
        runs = [
            json.loads(subprocess.run(command, check=True, capture_output=True).stdout) for _ in range(options.runs)
        ]
    for key in runs[0]:
        values = [run[key] for run in runs]
        print(f"{key:13} median {statistics.median(values):7.3f}  min {min(values):7.3f}  max {max(values):7.3f}")


if __name__ == "__main__":
    main()
