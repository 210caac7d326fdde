"""``iostack bench``: how fast a corpus becomes batches here."""

from __future__ import annotations

import json
import logging
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click

from iostack.cli.options import chosen_columns, columns_option, corpus_options, storage_options, transform_specs

if TYPE_CHECKING:
    from iostack.loader.loader import Loader

logger = logging.getLogger(__name__)

_SECONDS = 10.0
_SHOW_EVERY_S, _LOG_EVERY_S = 0.25, 5.0


@dataclass
class _Measured:
    """What the batches after the first one took; ``first_batch_s`` counts from before the corpus was opened."""

    first_batch_s: float
    steps: int = 0
    samples: int = 0
    bytes: int = 0
    wall_s: float = 0.0
    cpu_s: float = 0.0
    data_wait_s: float = 0.0
    wait_s: dict[str, float] = field(default_factory=dict)

    def per_s(self, amount: float) -> float:
        """Return how much that is in a second."""
        return amount / self.wall_s if self.wall_s else 0.0


@click.command(
    epilog="""\b
Examples:
  iostack bench ./tokens --seq-len 2048 --batch-size 8
  iostack bench s3://bucket/text --seq-len 2048 --tokenizer huggingface:tokenizer.json
  iostack bench ./images --transform '{"name": "keep", "columns": ["jpg"]}' --json
"""
)
@corpus_options
@columns_option
@click.option(
    "--batch-size", type=click.IntRange(1), default=8, show_default=True, help="Samples of a step, of all ranks."
)
@click.option("--seq-len", type=click.IntRange(1), help="Tokens of a sequence; without it, batches are whole samples.")
@click.option("--steps", type=click.IntRange(1), help="Measure so many batches after the first one.")
@click.option(
    "--seconds", type=click.FloatRange(0, min_open=True), help="Measure so long; 10 where --steps is not given."
)
@click.option("--ranks", type=click.IntRange(1), default=1, show_default=True, help="Be the first of so many ranks.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the order.")
@click.option("--threads", type=click.IntRange(1), help="Threads that decode; up to 4 by default.")
@click.option("--workers", type=click.IntRange(0), default=0, show_default=True, help="Processes in place of threads.")
@click.option("--tokenizer", default="bytes", show_default=True, metavar="NAME[:ARGUMENT]", help="For text.")
@click.option("--text-column", default="text", show_default=True, metavar="NAME", help="Column that holds the text.")
@click.option("--transform", "transforms", multiple=True, metavar="NAME|JSON", help="Map the samples; may be repeated.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def bench(
    uri: str,
    format: str | None,
    cache_dir: str | None,
    storage: tuple[str, ...],
    columns: str | None,
    batch_size: int,
    seq_len: int | None,
    steps: int | None,
    seconds: float | None,
    ranks: int,
    seed: int,
    threads: int | None,
    workers: int,
    tokenizer: str,
    text_column: str,
    transforms: tuple[str, ...],
    as_json: bool,
) -> None:
    """Load batches of URI, and tell how fast they came and how long they were waited for.

    Nothing is done with the batches. The clock starts when the corpus is opened; the first batch is told apart from the
    rest, since it waits for the first shards. What was fetched before is in the cache folder and not fetched again.
    """
    from iostack.corpus.corpus import open_corpus
    from iostack.loader.loader import Loader

    specs = transform_specs(transforms)
    started = time.perf_counter()
    chosen = chosen_columns(columns)
    with open_corpus(uri, format=format, columns=chosen, cache_dir=cache_dir, **storage_options(storage)) as corpus:
        loader = Loader(
            corpus,
            batch_size=batch_size,
            seq_len=seq_len,
            seed=seed,
            rank=0,
            ranks=ranks,
            tokenizer=tokenizer,
            text_column=text_column,
            transforms=specs,
            threads=threads,
            workers=workers,
        )
        with loader, _show_live() as show:
            measured = _measure(loader, started, steps, seconds or (None if steps else _SECONDS), show)
        facts = {"uri": corpus.uri, "format": corpus.format.name, **_facts(measured, loader, seq_len, ranks)}
    if as_json:
        click.echo(json.dumps(facts))
    else:
        _print(facts)


def _measure(
    loader: Loader, started: float, steps: int | None, seconds: float | None, show: Callable[[str], None]
) -> _Measured:
    """Take batches until ``steps`` or ``seconds`` are over, whichever comes first."""
    from iostack.loader.batch_bytes import batch_bytes

    batches = iter(loader)
    next(batches)
    begun = shown = time.perf_counter()
    measured = _Measured(first_batch_s=begun - started)
    cpu_s, data_wait_s, wait_s = time.process_time(), loader.data_wait_s, _wait_s(loader)
    for batch in batches:
        measured.steps += 1
        measured.samples += len(batch["sample_ids"])
        measured.bytes += batch_bytes(batch)
        now = time.perf_counter()
        measured.wall_s = now - begun
        if now - shown > _SHOW_EVERY_S:
            shown = now
            show(f"{measured.steps:,} batches, {measured.per_s(measured.samples):,.0f} samples/s")
        if measured.steps == steps or (seconds is not None and measured.wall_s >= seconds):
            break
    measured.cpu_s = time.process_time() - cpu_s
    measured.data_wait_s = loader.data_wait_s - data_wait_s
    measured.wait_s = {stage: total - wait_s.get(stage, 0.0) for stage, total in _wait_s(loader).items()}
    return measured


def _wait_s(loader: Loader) -> dict[str, float]:
    return {name: figures.wait_s for name, figures in loader.stages().items() if name != "consumer"}


def _facts(measured: _Measured, loader: Loader, seq_len: int | None, ranks: int) -> dict[str, Any]:
    return {
        "batch_size": loader.batch_size,
        "ranks": ranks,
        "seq_len": seq_len,
        "first_batch_s": round(measured.first_batch_s, 6),
        "steps": measured.steps,
        "wall_s": round(measured.wall_s, 6),
        "cpu_s": round(measured.cpu_s, 6),
        "samples_per_s": round(measured.per_s(measured.samples), 2),
        "tokens_per_s": None if seq_len is None else round(measured.per_s(measured.samples * seq_len), 2),
        "mb_per_s": round(measured.per_s(measured.bytes) / 1e6, 3),
        "wait_share": round(min(1.0, measured.per_s(measured.data_wait_s)), 4),
        "wait_s": {stage: round(total, 6) for stage, total in measured.wait_s.items()},
        "bad_samples": loader.bad_samples.count,
        "slow_samples": [
            {"shard": slow.shard, "row": slow.row, "seconds": round(slow.seconds, 6)} for slow in loader.slow_samples()
        ],
        "peak_rss_bytes": _peak_rss_bytes(),
    }


def _peak_rss_bytes() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _slowest(slow_samples: list[dict[str, Any]]) -> str | None:
    if not slow_samples:
        return None
    slowest = slow_samples[0]
    return f"{slowest['seconds']:.3f} s in the transforms of {slowest['shard']} row {slowest['row']}"


def _print(facts: dict[str, Any]) -> None:
    from iostack.sizes import format_bytes

    waits = ", ".join(f"{stage} {seconds:.2f} s" for stage, seconds in facts["wait_s"].items() if seconds)
    tokens = facts["tokens_per_s"]
    lines = {
        "uri": facts["uri"],
        "format": facts["format"],
        "first batch": f"{facts['first_batch_s']:.3f} s",
        "measured": f"{facts['steps']:,} batches in {facts['wall_s']:.2f} s, {facts['cpu_s']:.2f} CPU s",
        "samples/s": f"{facts['samples_per_s']:,.0f}",
        "tokens/s": None if tokens is None else f"{tokens:,.0f}",
        "MB/s": f"{facts['mb_per_s']:,.1f}",
        "waiting": f"{facts['wait_share']:.1%}" + (f" ({waits})" if waits else ""),
        "bad samples": f"{facts['bad_samples']:,}" if facts["bad_samples"] else None,
        "slowest": _slowest(facts["slow_samples"]),
        "peak memory": format_bytes(facts["peak_rss_bytes"]),
    }
    for name, value in lines.items():
        if value is not None:
            click.echo(f"{name:<12} {value}")


@contextmanager
def _show_live() -> Iterator[Callable[[str], None]]:
    """Yield a function that shows a line on stderr: in place on a terminal, else as a log line every few seconds."""
    if not sys.stderr.isatty():
        yield _log_lines()
        return
    from rich.console import Console

    with Console(stderr=True).status("opening", refresh_per_second=4) as status:
        yield status.update


def _log_lines() -> Callable[[str], None]:
    last = time.monotonic()

    def log(line: str) -> None:
        nonlocal last
        if time.monotonic() - last >= _LOG_EVERY_S:
            last = time.monotonic()
            logger.info("bench: %s", line)

    return log
