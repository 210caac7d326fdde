"""``iostack bench``: how fast a corpus becomes batches here, and which stage holds it back."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from iostack.cli.interrupts import nothing_has_begun
from iostack.cli.options import (
    FiniteRange,
    chosen_columns,
    columns_option,
    corpus_options,
    operator_specs,
    storage_options,
)

if TYPE_CHECKING:
    from iostack.bench.rounds import Speed
    from iostack.corpus.corpus import Corpus
    from iostack.loader.loader import Loader

logger = logging.getLogger(__name__)

_SECONDS, _ALONE_SECONDS, _STEPS_SECONDS = 10.0, 1.0, 5.0
_LOG_EVERY_S = 5.0


@click.command(
    epilog="""\b
Examples:
  iostack bench ./tokens --seq-len 2048 --batch-size 8
  iostack bench s3://bucket/text --seq-len 2048 --tokenizer huggingface:tokenizer.json --step-ms 250
  iostack bench ./images --transform '{"name": "keep", "columns": ["jpg"]}' --json --picture images.svg
"""
)
@corpus_options
@columns_option
@click.option(
    "--batch-size", type=click.IntRange(1), default=8, show_default=True, help="Samples of a step, of all ranks."
)
@click.option("--seq-len", type=click.IntRange(1), help="Tokens of a sequence; without it, batches are whole samples.")
@click.option(
    "--packing",
    type=click.Choice(["none", "split", "best_fit"]),
    default="none",
    show_default=True,
    help="How documents become sequences.",
)
@click.option("--steps", type=click.IntRange(1), help="Measure so many batches after the first one.")
@click.option("--seconds", type=FiniteRange(0, min_open=True), help="Measure so long; 10 where --steps is not given.")
@click.option("--ranks", type=click.IntRange(1), default=1, show_default=True, help="Be the first of so many ranks.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the order.")
@click.option("--threads", type=click.IntRange(1), help="Threads that decode; up to 4 by default.")
@click.option("--workers", type=click.IntRange(0), default=0, show_default=True, help="Processes in place of threads.")
@click.option("--tokenizer", default="bytes", show_default=True, metavar="NAME[:ARGUMENT]", help="For text.")
@click.option("--text-column", default="text", show_default=True, metavar="NAME", help="Column that holds the text.")
@click.option("--transform", "transforms", multiple=True, metavar="NAME|JSON", help="Map the samples; may be repeated.")
@click.option(
    "--alone-seconds",
    type=FiniteRange(0),
    default=_ALONE_SECONDS,
    show_default=True,
    help="Measure each stage alone for so long; 0 leaves that out.",
)
@click.option("--step-ms", type=FiniteRange(0, min_open=True), help="Simulate training steps of so many ms.")
@click.option(
    "--picture", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Draw the figures: .svg or .png."
)
@click.option("--trace", type=click.Path(dir_okay=False), metavar="FILE", help="Write a timeline for ui.perfetto.dev.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def bench(
    uri: str,
    format: str | None,
    cache_dir: str | None,
    storage: tuple[str, ...],
    columns: str | None,
    steps: int | None,
    seconds: float | None,
    threads: int | None,
    transforms: tuple[str, ...],
    alone_seconds: float,
    step_ms: float | None,
    picture: Path | None,
    as_json: bool,
    **settings: Any,
) -> None:
    """Load batches of URI, and tell how fast they came and which stage of the loader holds them back.

    Nothing is done with the batches. The clock starts when the corpus is opened; the first batch is told apart from the
    rest, since it waits for the first shards. What was fetched before is in the cache folder and not fetched again. Then
    each stage is measured alone, on the same data with the same threads.
    """
    with nothing_has_begun():
        from iostack.bench.picture import check_picture, draw
        from iostack.bench.report import report
        from iostack.bench.whole import simulate, take_batches
        from iostack.corpus.corpus import open_corpus
        from iostack.loader.loader import Loader

    if picture is not None:
        check_picture(picture)
    specs = operator_specs(transforms, "--transform")
    started = time.perf_counter()
    chosen = chosen_columns(columns)
    with open_corpus(uri, format=format, columns=chosen, cache_dir=cache_dir, **storage_options(storage)) as corpus:
        loader = Loader(corpus, rank=0, transforms=specs, threads=threads, **settings)
        with loader, _show_live() as show:
            whole = take_batches(loader, started, steps, seconds or (None if steps else _SECONDS), show)
            simulated = None
            if step_ms is not None:
                simulated = simulate(loader, step_ms=step_ms, seconds=seconds or _STEPS_SECONDS, show=show)
            loader.close()
            alone = _alone(loader, corpus, whole.last_batch, alone_seconds, show) if alone_seconds else {}
        facts = report(corpus, loader, whole, alone, simulated)
    if picture is not None:
        draw(facts, picture)
    if as_json:
        click.echo(json.dumps(facts))
    else:
        _print(facts)


def _alone(
    loader: Loader, corpus: Corpus, batch: Mapping[str, Any], seconds: float, show: Callable[[str], None]
) -> dict[str, Speed]:
    from iostack.bench.alone import Stages
    from iostack.bench.on_device import copies_alone

    show("stages alone")
    measured = {}
    for stage, speed in chain(Stages(loader, corpus).alone(seconds), copies_alone(batch, seconds)):
        measured[stage] = speed
        show(f"{stage} alone: {speed.samples_per_s:,.0f} samples/s")
    return measured


def _slowest(slow_samples: list[dict[str, Any]]) -> str | None:
    if not slow_samples:
        return None
    slowest = slow_samples[0]
    return f"{slowest['seconds']:.3f} s in the transforms of {slowest['shard']} row {slowest['row']}"


def _print(facts: dict[str, Any]) -> None:
    from iostack.sizes import format_bytes

    waits = [f"{stage} {share:.0%}" for stage, share in facts["wait_shares"].items() if share >= 0.005]
    tokens, steps = facts["tokens_per_s"], facts["simulated"]
    lines = {
        "uri": facts["uri"],
        "format": facts["format"],
        "first batch": f"{facts['first_batch_s']:.3f} s",
        "measured": f"{facts['steps']:,} batches in {facts['wall_s']:.2f} s, {facts['cpu_s']:.2f} CPU s",
        "samples/s": f"{facts['samples_per_s']:,.0f}",
        "tokens/s": None if tokens is None else f"{tokens:,.0f}",
        "MB/s": f"{facts['mb_per_s']:,.1f}",
        "bad samples": f"{facts['bad_samples']:,}" if facts["bad_samples"] else None,
        "slowest": _slowest(facts["slow_samples"]),
        "peak memory": format_bytes(facts["peak_rss_bytes"]),
        "waited for": ", ".join(waits) or None,
        "simulated": steps
        and f"{steps['waited_steps']} of {steps['steps']} steps of {steps['step_ms']:g} ms waited,"
        f" {steps['wait_share']:.1%} of the time",
    }
    for name, value in lines.items():
        if value is not None:
            click.echo(f"{name:<12} {value}")
    _print_alone(facts["alone"])
    for name, value in {
        "held back by": facts["held_back_by"],
        "so": facts["advice"],
        "note": facts["first_epoch"],
    }.items():
        if value is not None:
            click.echo(f"{name:<12} {value}")


def _print_alone(alone: dict[str, dict[str, Any]]) -> None:
    if alone:
        click.echo(f"\n{'alone':<12} {'samples/s':>14} {'MB/s':>10} {'threads':>8}")
        for stage, speed in alone.items():
            figures = f"{speed['samples_per_s']:>14,.0f} {speed['mb_per_s']:>10,.1f} {speed['threads']:>8}"
            click.echo(f"{stage:<12} {figures}")
        click.echo()


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
