"""Documents packed into sequences with their boundaries: iostack.Loader against numpy, and against a bare gather of windows.

The bare gather takes random windows of the maps into a fresh batch, in blocks of 64 batches, and does nothing else. The
packing in plain numpy joins permuted documents of one shard after the other piece by piece, and computes the same position ids
and loss mask for a block at once. Documents are log-normal: median 400 tokens, mean about 730. All run in one process,
alternating, after one run of each to warm up.

    python benchmarks/packing.py [--runs 7] [--batches 3200] [--folder DIR]
"""

from __future__ import annotations

import argparse
import json
import statistics
import struct
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from alternating import alternately, medians, tell, timed
from loader_tokens import BATCH_SIZE, BLOCK, SEQ_LEN, bare_gather
from numpy.typing import NDArray

WIDTH = SEQ_LEN + 1


def write_shards(folder: Path, num_shards: int, tokens_per_shard: int) -> None:
    """Write Megatron .bin/.idx shards of uint16 tokens, each document one sequence."""
    for shard in range(num_shards):
        random = np.random.default_rng(shard)
        random.integers(0, 50_000, tokens_per_shard, dtype=np.uint16).tofile(folder / f"{shard:03d}.bin")
        lengths = np.maximum(random.lognormal(np.log(400), 1.1, tokens_per_shard // 200), 1).astype(np.int64)
        stops = np.minimum(np.cumsum(lengths), tokens_per_shard)
        stops = stops[: np.searchsorted(stops, tokens_per_shard) + 1]
        lengths = np.diff(stops, prepend=0)
        header = b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, 8, len(lengths), len(lengths) + 1)
        offsets = (stops - lengths) * 2
        marks = np.arange(len(lengths) + 1)
        index = lengths.astype(np.int32).tobytes() + offsets.tobytes() + marks.astype(np.int64).tobytes()
        (folder / f"{shard:03d}.idx").write_bytes(header + index)


def numpy_packing(folder: Path, num_batches: int) -> Callable[[], int]:
    """Return a function that packs as ``packing="split"`` does, a shard after the other, in plain numpy."""
    maps = [np.memmap(path, np.uint16, mode="r").view(np.ndarray) for path in sorted(folder.glob("*.bin"))]
    bounds = [_bounds(path) for path in sorted(folder.glob("*.idx"))]
    blocks = _numpy_blocks(maps, bounds)

    def run() -> int:
        for _ in range(num_batches // BLOCK):
            tokens, _, _ = next(blocks)
            for batch in tokens.reshape(BLOCK, BATCH_SIZE, WIDTH):
                batch.shape  # noqa: B018
        return num_batches * BATCH_SIZE * SEQ_LEN

    return run


def _bounds(path: Path) -> NDArray[np.int64]:
    data = path.read_bytes()
    count = struct.unpack_from("<Q", data, 18)[0]
    return np.concatenate([[0], np.cumsum(np.frombuffer(data, np.int32, count, 34))])


def _numpy_blocks(maps: list[NDArray[np.uint16]], bounds: list[NDArray[np.int64]]) -> Iterator[tuple[np.ndarray, ...]]:
    random = np.random.default_rng(0)
    rows = BLOCK * BATCH_SIZE
    while True:
        for shard, mapped in enumerate(maps):
            order = random.permutation(len(bounds[shard]) - 1)
            sources, lengths = bounds[shard][order], np.diff(bounds[shard])[order]
            ends = np.cumsum(lengths)
            for first in range(0, int(ends[-1]) - rows * SEQ_LEN - 1, rows * SEQ_LEN):
                tokens = np.empty((rows, WIDTH), np.int64)
                starts = np.ones((rows, WIDTH), np.bool_)
                starts[:, 1:] = False
                for row, begin in enumerate(range(first, first + rows * SEQ_LEN, SEQ_LEN)):
                    document, at = int(np.searchsorted(ends, begin, side="right")), 0
                    while at < WIDTH:
                        skipped = int(begin + at - (ends[document] - lengths[document]))
                        length = min(int(lengths[document]) - skipped, WIDTH - at)
                        source = int(sources[document]) + skipped
                        tokens[row, at : at + length] = mapped[source : source + length]
                        starts[row, at] = True
                        at, document = at + length, document + 1
                counted = np.arange(SEQ_LEN)
                begins = np.maximum.accumulate(np.where(starts[:, :-1], counted, 0), axis=1)
                yield tokens, counted - begins, ~starts[:, 1:]


def loader(folder: Path, num_batches: int, packing: str) -> Callable[[], int]:
    """Return a function that takes batches from one endless loader."""
    import iostack

    corpus = iostack.open_corpus(folder)
    batches = iter(iostack.Loader(corpus, batch_size=BATCH_SIZE, seq_len=SEQ_LEN, packing=packing))

    def run() -> int:
        for _ in range(num_batches):
            next(batches)["tokens"].shape  # noqa: B018
        return num_batches * BATCH_SIZE * SEQ_LEN

    return run


def padding_share(folder: Path) -> float:
    """Return which share of the positions is padding with best-fit packing."""
    import iostack

    held = []
    corpus = iostack.open_corpus(folder)
    with iostack.Loader(corpus, batch_size=BATCH_SIZE, seq_len=SEQ_LEN, packing="best_fit") as batches:
        for _, batch in zip(range(500), batches):
            position_ids = batch["position_ids"]
            last = (position_ids == 0).cumsum(1)
            is_padding = (last == last[:, -1:]) & ~batch["loss_mask"][:, -1:] & (batch["tokens"][:, :-1] == 0)
            held.append(float(is_padding.float().mean()))
    return statistics.mean(held)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--batches", type=int, default=3200)
    parser.add_argument("--shards", type=int, default=16)
    parser.add_argument("--tokens-per-shard", type=int, default=16_000_000)
    parser.add_argument("--folder", type=Path, help="where the shards are made; a temporary folder by default")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        write_shards(folder, options.shards, options.tokens_per_shard)
        contenders = {
            "bare gather": bare_gather(folder, options.batches),
            "numpy": numpy_packing(folder, options.batches),
            "split": loader(folder, options.batches, "split"),
            "best_fit": loader(folder, options.batches, "best_fit"),
        }
        speeds = alternately({name: timed(run) for name, run in contenders.items()}, options.runs)
        padding = padding_share(folder)
    tell(speeds, "Mtok/s", 1e6, "CPU s per Gtok", 1e9)
    middle = medians(speeds)
    bare = middle["bare gather"]
    shares = {
        name: {
            "of wall speed": round(middle[name].per_s / bare.per_s, 3),
            "of CPU speed": round(bare.cpu_s / middle[name].cpu_s, 3),
        }
        for name in ("numpy", "split", "best_fit")
    }
    print(json.dumps({"share of bare gather": shares, "padding of best_fit": round(padding, 4)}))


if __name__ == "__main__":
    main()
