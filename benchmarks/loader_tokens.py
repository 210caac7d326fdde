"""Tokens from mapped shards in shuffled windows: iostack.Loader against a bare numpy gather of the same memory maps.

The gather takes random windows of the maps into a fresh batch, in blocks of 64 batches, and does nothing else: it is
the bound of any loader on this machine. Both run in one process, alternating, after one run of each to warm up.

    python benchmarks/loader_tokens.py [--runs 7] [--batches 6400] [--folder DIR]
"""

from __future__ import annotations

import argparse
import json
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from alternating import alternately, medians, tell, timed

BATCH_SIZE, SEQ_LEN, BLOCK = 8, 2048, 64


def write_shards(folder: Path, num_shards: int, tokens_per_shard: int) -> None:
    """Write Megatron .bin/.idx shards of uint16 tokens, one document each."""
    for shard in range(num_shards):
        tokens = np.random.default_rng(shard).integers(0, 50_000, tokens_per_shard, dtype=np.uint16)
        tokens.tofile(folder / f"{shard:03d}.bin")
        header = b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, 8, 1, 2)
        index = np.asarray([tokens_per_shard], np.int32).tobytes() + np.zeros(1, np.int64).tobytes()
        (folder / f"{shard:03d}.idx").write_bytes(header + index + np.asarray([0, 1], np.int64).tobytes())


def bare_gather(folder: Path, num_batches: int) -> Callable[[], int]:
    """Return a function that gathers random windows and returns how many tokens it gathered."""
    maps = [np.memmap(path, np.uint16, mode="r").view(np.ndarray) for path in sorted(folder.glob("*.bin"))]
    random = np.random.default_rng(0)

    def run() -> int:
        width = SEQ_LEN + 1
        for _ in range(num_batches // BLOCK):
            count = BLOCK * BATCH_SIZE
            shards = random.integers(0, len(maps), count).tolist()
            starts = random.integers(0, len(maps[0]) - width, count).tolist()
            block = np.empty((count, width), np.int64)
            for row, shard, start in zip(block, shards, starts, strict=True):
                row[:] = maps[shard][start : start + width]
            for batch in block.reshape(BLOCK, BATCH_SIZE, width):
                batch.shape  # noqa: B018 - the consumer takes it, and looks at nothing: an element costs torch 1.7 us, numpy 0.1
        return num_batches * BATCH_SIZE * SEQ_LEN

    return run


def loader(folder: Path, num_batches: int) -> Callable[[], int]:
    """Return a function that takes batches from one endless loader."""
    import iostack

    batches = iter(iostack.Loader(iostack.open_corpus(folder), batch_size=BATCH_SIZE, seq_len=SEQ_LEN))

    def run() -> int:
        for _ in range(num_batches):
            next(batches)["tokens"].shape  # noqa: B018
        return num_batches * BATCH_SIZE * SEQ_LEN

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--batches", type=int, default=6400)
    parser.add_argument("--shards", type=int, default=16)
    parser.add_argument("--tokens-per-shard", type=int, default=16_000_000)
    parser.add_argument("--folder", type=Path, help="where the shards are made; a temporary folder by default")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        write_shards(folder, options.shards, options.tokens_per_shard)
        contenders = {"bare gather": bare_gather(folder, options.batches), "iostack": loader(folder, options.batches)}
        speeds = alternately({name: timed(run) for name, run in contenders.items()}, options.runs)
    tell(speeds, "Mtok/s", 1e6, "CPU s per Gtok", 1e9)
    middle = medians(speeds)
    print(json.dumps({"share of bare gather": round(middle["iostack"].per_s / middle["bare gather"].per_s, 3)}))


if __name__ == "__main__":
    main()
