"""The pipelines that the invariants are tested with: small corpora of every kind, and loaders over them by name."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import corpora
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from worker_transforms import Draw, decode_number, is_long, is_rare, is_third, shout

import iostack
from iostack.corpus.index import build_manifest
from iostack.loader.order.planned import Source

NUM_TEXTS, NUM_ROWS, SEQ_LEN = 150, 90, 16
TOKENS_PER_SHARD = (300, 0, 45, 16, 410, 17, 120)
BAD_ROWS = (7, 8, 31, 60)

Corpora = Mapping[str, iostack.Corpus]


def write_corpora(folder: Path) -> Corpora:
    """Write all corpora once and open them."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_tokens(folder / "tokens")
    _write_documents(folder / "documents")
    for name in ("texts", "texts counted"):
        _write_rows(folder / name, corpora.texts(NUM_TEXTS), per_shard=30)
        (folder / name / "9-empty.jsonl").touch()
    for name in ("bad", "bad counted"):
        _write_rows(folder / name, corpora.texts(NUM_ROWS), per_shard=18, bad=BAD_ROWS)
    for name in ("tar", "tar counted"):
        for shard in range(5):
            corpora.write_tar(folder / name / f"{shard}.tar", corpora.images(18, 18 * shard))
    _write_tables(folder)
    corpora.write_mds(folder / "mds", [(number, "x" * (number % 9)) for number in range(NUM_ROWS)], per_shard=17)
    random = np.random.default_rng(1)
    counts = ((90, 30), (7,), (200, 0, 60, 41), (120, 33))
    drawn = [[random.integers(0, 60_000, count).tolist() for count in chunk] for chunk in counts]
    corpora.write_litdata_tokens(folder / "litdata", drawn)
    opened = {}
    for each in sorted(folder.iterdir()):
        if each.name.endswith("counted"):
            build_manifest(each, cache_dir=folder / ".cache")
        opened[each.name] = iostack.open_corpus(each, cache_dir=folder / ".cache")
    return opened


def _write_tokens(folder: Path) -> None:
    random = np.random.default_rng(0)
    for shard, count in enumerate(TOKENS_PER_SHARD):
        corpora.write_tokens(folder / f"{shard}", [[random.integers(0, 60_000, count).tolist()]] if count else [])


def _write_documents(folder: Path) -> None:
    """Write shards of documents of 0 to 40 tokens, some of several sequences; an empty one, and one of a single document."""
    random = np.random.default_rng(1)
    for shard, count in enumerate((30, 0, 4, 25, 1)):
        lengths = random.integers(0, 41, (count, 2)) // [1, 4] if count > 1 else np.full((count, 1), 50)
        documents = [[random.integers(0, 60_000, n).tolist() for n in sequences] for sequences in lengths.tolist()]
        corpora.write_tokens(folder / f"{shard}", documents)


def _write_tables(folder: Path) -> None:
    """Write the texts as Parquet (counted by its footers) and as Arrow, half of it compressed; with an empty shard each."""
    for shard in range(6):
        rows = corpora.texts(18 if shard < 5 else 0, 18 * shard)
        table = pa.table(
            {
                "text": [row["text"] for row in rows],
                "n": [row["n"] for row in rows],
                "list": [[1] * (row["n"] % 4) for row in rows],
            },
            pa.schema([("text", pa.string()), ("n", pa.int64()), ("list", pa.list_(pa.int8()))]),
        )
        (folder / "parquet").mkdir(exist_ok=True)
        (folder / "arrow").mkdir(exist_ok=True)
        pq.write_table(table, folder / "parquet" / f"{shard}.parquet", row_group_size=8)
        options = pa.ipc.IpcWriteOptions(compression="zstd" if shard % 2 else None)
        with pa.ipc.new_file(str(folder / "arrow" / f"{shard}.arrow"), table.schema, options=options) as writer:
            writer.write_table(table, max_chunksize=7)


def _write_rows(folder: Path, rows: list[dict[str, Any]], *, per_shard: int, bad: tuple[int, ...] = ()) -> None:
    folder.mkdir(parents=True)
    for shard in range(0, len(rows), per_shard):
        numbers = range(shard, min(shard + per_shard, len(rows)))
        lines = ["{broken" if number in bad else json.dumps(rows[number]) for number in numbers]
        (folder / f"{shard // per_shard}.jsonl").write_text("".join(f"{line}\n" for line in lines))


Make = Callable[..., iostack.Loader]

TEXT = {"seq_len": SEQ_LEN, "window_bytes": 2000}
TOKENS = {"seq_len": SEQ_LEN, "window_bytes": 300}
ROWS = {"window_bytes": 500}
TAR = {"window_bytes": 50_000}

_SETTINGS: dict[str, tuple[Callable[[Corpora], Any], dict[str, Any]]] = {
    "tokens": (lambda c: c["tokens"], TOKENS),
    "texts": (lambda c: c["texts"], TEXT),
    "texts counted": (lambda c: c["texts counted"], TEXT),
    "texts transformed": (lambda c: c["texts counted"], TEXT | {"transforms": [shout]}),
    "bad texts": (lambda c: c["bad"], TEXT),
    "bad texts counted": (lambda c: c["bad counted"], TEXT),
    "tokens split": (lambda c: c["documents"], TOKENS | {"packing": "split"}),
    "tokens fitted": (lambda c: c["documents"], TOKENS | {"packing": "best_fit"}),
    "texts split": (lambda c: c["texts"], TEXT | {"packing": "split"}),
    "texts fitted": (lambda c: c["texts counted"], TEXT | {"packing": "best_fit"}),
    "bad texts fitted": (lambda c: c["bad"], TEXT | {"packing": "best_fit"}),
    "rows": (lambda c: c["tar"], TAR),
    "rows counted": (lambda c: c["tar counted"], TAR),
    "rows transformed": (lambda c: c["tar"], TAR | {"transforms": [decode_number]}),
    "rows counted transformed": (lambda c: c["tar counted"], TAR | {"transforms": [decode_number]}),
    "rows keyed": (lambda c: c["tar counted"], TAR | {"transforms": [Draw()]}),
    "texts of parquet": (lambda c: c["parquet"], TEXT),
    "rows counted of parquet": (lambda c: c["parquet"], ROWS),
    "rows counted of arrow": (lambda c: c["arrow"].with_columns(["n", "text"]), ROWS),
    "rows counted of mds": (lambda c: c["mds"], ROWS),
    "tokens of litdata": (lambda c: c["litdata"], TOKENS),
    "tokens of litdata fitted": (lambda c: c["litdata"], TOKENS | {"packing": "best_fit"}),
    "bad rows": (lambda c: c["bad"], ROWS),
    "bad rows counted": (lambda c: c["bad counted"], ROWS),
    "filtered texts": (lambda c: c["texts counted"], TEXT | {"filters": [is_long]}),
    "filtered sparse texts": (lambda c: c["texts counted"], TEXT | {"filters": [is_rare]}),
    "filtered rows": (lambda c: c["tar"], TAR | {"filters": [is_third]}),
    "filtered bad rows": (
        lambda c: c["tar counted"],
        TAR | {"filters": [is_third], "transforms": [decode_number]},
    ),
}
PHASES = [{"after_samples": 10, "weights": [0, 1]}, {"after_samples": 25, "weights": [1, 2]}]
"""They begin within the first steps of a test."""
_MIXES: dict[str, tuple[Callable[[Corpora], Any], dict[str, Any]]] = {
    "mix of tokens and texts": (lambda c: [(c["tokens"], 2), (c["texts"], 1)], TEXT),
    "mix of three": (lambda c: [(c["tokens"], 0.5), (c["texts counted"], 0.3), (c["bad"], 0.2)], TEXT),
    "mix of split": (lambda c: [(c["documents"], 2), (c["texts"], 1)], TEXT | {"packing": "split"}),
    "mix of fitted": (lambda c: [(c["documents"], 1), (c["texts counted"], 2)], TEXT | {"packing": "best_fit"}),
    "mix of rows": (lambda c: [(c["tar counted"], 3), (c["bad"], 1), (c["tar"], 1)], ROWS),
    "phases": (lambda c: [(c["tokens"], 2), (c["texts"], 1)], TEXT | {"phases": PHASES}),
    "phases of rows": (lambda c: [(c["tar counted"], 3), (c["tar"], 1)], ROWS | {"phases": PHASES}),
    "mix that uses up a source": (
        lambda c: [Source(c["tokens"], 2, epochs=1), (c["texts"], 1)],
        TEXT | {"phases": [(30, [3, 1])]},
    ),
}
_FINITE_MIXES: dict[str, tuple[Callable[[Corpora], Any], dict[str, Any]]] = {
    "mix that ends": (
        lambda c: [Source(c["tar counted"], 3, epochs=2), Source(c["bad counted"], 1, epochs=1)],
        ROWS,
    ),
}
SINGLE = tuple(_SETTINGS)
"""Pipelines of one corpus: they can be finite."""
ENDLESS = (*_SETTINGS, *_MIXES)


def make(corpora: Corpora, pipeline: str, rank: int = 0, ranks: int = 1, **changes: Any) -> iostack.Loader:
    """Return a loader of 4 lanes and steps of 12 samples, unless ``changes`` say otherwise."""
    pick, settings = (_SETTINGS | _MIXES | _FINITE_MIXES)[pipeline]
    chosen = {"batch_size": 12, "lanes": 4, "seed": 5, "threads": 2} | settings | changes
    return iostack.Loader(pick(corpora), rank=rank, ranks=ranks, **chosen)
