"""Documents of Parquet in shuffled order: iostack.Loader against bare pyarrow, and against Hugging Face datasets.

The documents are random slices of 1 to 3 KB of the standard library's sources, beside two columns that nobody asks for.
Bare pyarrow decodes the text column to Python strings, in the order of the files, in two threads, and does nothing else.
iostack reads whole samples of that column, shuffled, with two threads: cold with an empty cache folder, so that every shard
is unpacked first, and warm. datasets streams the same column, as it comes and with a shuffle buffer.

    python benchmarks/parquet.py [--runs 5] [--documents 200000] [--shards 8] [--folder DIR] [--only NAME ...]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sysconfig
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from alternating import alternately, medians, tell, timed

BATCH_SIZE, THREADS, SHUFFLE_BUFFER = 256, 2, 10_000


def write_shards(folder: Path, num_documents: int, num_shards: int) -> None:
    """Write Parquet shards (zstd, row groups of 10,000) of random slices of the standard library's sources."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    library = Path(sysconfig.get_paths()["stdlib"])
    sources = sorted(path for path in library.glob("*/*.py") if "site-packages" not in path.parts)
    text = "".join(path.read_text("utf-8", "replace") for path in [*sorted(library.glob("*.py")), *sources])
    chooser = random.Random(0)
    for shard in range(num_shards):
        count = num_documents // num_shards
        starts = [chooser.randrange(len(text) - 3000) for _ in range(count)]
        documents = [text[start : start + chooser.randrange(1000, 3000)] for start in starts]
        table = pa.table(
            {"text": documents, "url": [f"file://{start}" for start in starts], "embedding": [[0.5] * 8] * count}
        )
        name = f"train-{shard:05}-of-{num_shards:05}.parquet"
        pq.write_table(table, folder / name, compression="zstd", row_group_size=10_000)


def bare_pyarrow(folder: Path) -> int:
    """Decode the text column of all files to Python strings; return how many."""
    import pyarrow.parquet as pq

    def decode(path: Path) -> int:
        batches = pq.ParquetFile(path).iter_batches(1024, columns=["text"], use_threads=False)
        return sum(len(batch.column(0).to_pylist()) for batch in batches)

    with ThreadPoolExecutor(THREADS) as threads:
        return sum(threads.map(decode, sorted(folder.glob("*.parquet"))))


def iostack_loader(folder: Path, cache_dir: Path) -> int:
    """Take one epoch of shuffled samples; return how many."""
    import iostack

    corpus = iostack.open_corpus(folder, columns=["text"], cache_dir=cache_dir)
    with corpus, iostack.Loader(corpus, batch_size=BATCH_SIZE, threads=THREADS, epochs=1, rank=0, ranks=1) as loader:
        return sum(int(batch["valid"].sum()) for batch in loader if batch["text"])


def streamed_datasets(folder: Path, *, shuffled: bool) -> int:
    """Stream the text column with datasets; return how many samples came."""
    import datasets

    files = [str(path) for path in sorted(folder.glob("*.parquet"))]
    stream = datasets.load_dataset("parquet", data_files=files, split="train", streaming=True, columns=["text"])
    if shuffled:
        stream = stream.shuffle(seed=0, buffer_size=SHUFFLE_BUFFER)
    return sum(len(batch["text"]) for batch in stream.iter(BATCH_SIZE))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--documents", type=int, default=200_000)
    parser.add_argument("--shards", type=int, default=8)
    parser.add_argument("--folder", type=Path, help="where data and caches are made; a temporary folder by default")
    parser.add_argument("--only", nargs="*", default=(), help="names of contenders to run")
    options = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        data, warm = Path(name) / "data", Path(name) / "warm"
        data.mkdir()
        os.environ["HF_HOME"] = str(Path(name) / "hf")
        write_shards(data, options.documents, options.shards)

        def cold() -> int:
            with tempfile.TemporaryDirectory(dir=name) as cache:
                return iostack_loader(data, Path(cache))

        contenders: dict[str, Callable[[], int]] = {
            "bare pyarrow": lambda: bare_pyarrow(data),
            "iostack warm": lambda: iostack_loader(data, warm),
            "iostack cold": cold,
            "datasets": lambda: streamed_datasets(data, shuffled=False),
            "datasets shuffled": lambda: streamed_datasets(data, shuffled=True),
        }
        contenders = {key: run for key, run in contenders.items() if not options.only or key in options.only}
        speeds = alternately({name: timed(run) for name, run in contenders.items()}, options.runs)
    tell(speeds, "k documents/s", 1e3, "CPU us per document", 1e6)
    if base := medians(speeds).get("bare pyarrow"):
        shares = {f"{name} / bare pyarrow": round(each.per_s / base.per_s, 3) for name, each in medians(speeds).items()}
        print(json.dumps(shares))


if __name__ == "__main__":
    main()
