"""``iostack plan``: what a loader will give, and what that costs, without running it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from iostack.cli.options import operator_specs, storage_options
from iostack.errors import UsageError

if TYPE_CHECKING:
    from iostack.loader.order.planned import LoaderPlan
    from iostack.preview.contracts import PlannedRun
    from iostack.preview.samples import PlannedSample

_MOST_STEPS, _MOST_ROWS = 10**11, 1 << 24
Command = TypeVar("Command", bound=Callable[..., Any])


class _Steps(click.ParamType[Any]):
    """Steps as a range: ``7`` or ``7:9``, both ends included, counted from 1."""

    name = "steps"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> range:
        if isinstance(value, range):
            return value
        first, _, last = value.partition(":")
        is_range = first.isdecimal() and (last or first).isdecimal()
        if not is_range or not 1 <= int(first) <= int(last or first) <= _MOST_STEPS:
            self.fail(f"{value!r} is no range of steps such as 7 or 7:9, from 1 to {_MOST_STEPS:,}", param, ctx)
        return range(int(first), int(last or first) + 1)


def _planning_options(command: Command) -> Command:
    for option in reversed(
        (
            click.argument("uri", default="", required=False),
            click.option("-c", "--config", type=click.Path(exists=True, path_type=Path), metavar="PATH",
                         help="Settings file or run folder: its data, batch size and lanes."),
            click.option("--format", metavar="NAME", help="Format of the shards, where their names do not tell."),
            click.option("--cache-dir", metavar="FOLDER", help="Where remote and decompressed shards are kept."),
            click.option("-o", "--option", "storage", metavar="KEY=VALUE", multiple=True, help="Storage option."),
            click.option("--batch-size", type=click.IntRange(1, _MOST_ROWS), help="Samples of a step, of all ranks; by default 8."),
            click.option("--seq-len", type=click.IntRange(1), help="Tokens of a sequence; else whole samples."),
            click.option("--seed", type=int, help="Seed of the order; by default 0."),
            click.option("--lanes", type=click.IntRange(1), help="Lanes of the run, where it has chosen them."),
            click.option("--ranks", type=click.IntRange(1), default=1, show_default=True, help="Data ranks."),
            click.option("--epochs", type=click.IntRange(1), help="End after so many passes over the one corpus."),
            click.option("--packing", type=click.Choice(["none", "split", "best_fit"]), help="How documents are packed."),
            click.option("--window", metavar="BYTES", help="Window of the shuffle; by default 256 MiB."),
            click.option("--tokenizer", metavar="NAME[:ARGUMENT]", help="For text."),
            click.option("--text-column", metavar="NAME", help="Column that holds the text."),
            click.option("--filter", "filters", multiple=True, metavar="NAME|JSON", help="Filter; may be repeated."),
            click.option("--skip", metavar="FILE", help="Skip list of the run."),
        )
    ):  # fmt: skip
        command = option(command)
    return command


@click.command(
    epilog="""\b
Examples:
  iostack plan ./tokens --seq-len 2048 --batch-size 64 --steps 100:103
  iostack plan -c run --steps 1234 --json
  iostack plan -c run.toml --prove 1,4,16 --steps 1:50
  iostack plan -c run --spike run/metrics.jsonl --write-skip skip.json
  iostack plan s3://bucket/tokens --seq-len 2048 --quality
  iostack plan s3://bucket/tokens --seq-len 2048 --estimate --nodes 16
"""
)
@_planning_options
@click.option("--steps", type=_Steps(), metavar="N[:M]", help="Steps to print, from 1, both included; by default 1.")
@click.option("--prove", metavar="R,R,...", help="Prove that so many data ranks are given the same samples.")
@click.option(
    "--spike", metavar="N[:M]|FILE", help="Print the samples of these steps, or where the loss of FILE leaps."
)
@click.option("--write-skip", type=click.Path(path_type=Path), metavar="FILE", help="Write them as a skip list.")
@click.option("--quality", is_flag=True, help="Measure the shuffle against one of the whole corpus.")
@click.option("--estimate", is_flag=True, help="Tell bytes, disk, requests and memory.")
@click.option(
    "--nodes", type=click.IntRange(1), default=1, show_default=True, help="Nodes that --estimate counts with."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")
def plan(
    uri: str,
    config: Path | None,
    steps: range | None,
    ranks: int,
    prove: str | None,
    spike: str | None,
    write_skip: Path | None,
    quality: bool,
    estimate: bool,
    nodes: int,
    as_json: bool,
    epochs: int | None,
    **options: Any,
) -> None:
    """Print the samples of steps, as a loader would give them, without running it.

    Where counts tell the order, no shard is opened and any step costs the same; text, filtered samples and corpora that
    were not counted are read from the start up to the step. Of samples that turn out to be bad, the plan is told.
    """
    if sum((prove is not None, spike is not None, quality, estimate)) > 1:
        raise click.UsageError("--prove, --spike, --quality and --estimate exclude each other")
    if write_skip is not None and spike is None and steps is None:
        raise click.UsageError("--write-skip needs --spike or --steps, which say what to skip")
    run = _run_of(uri, config, options)
    planned = _plan_of(run, ranks)
    if len(run.sources) == 1:
        epochs = epochs or run.sources[0].epochs
    if quality or estimate:
        from iostack.preview.estimate import estimate as costs_of
        from iostack.preview.quality import measure

        _print(map(asdict, measure(planned, run.batch_size) if quality else costs_of(planned, nodes)), as_json)
    elif prove is not None:
        _prove(planned, run.batch_size, prove, steps or range(1, 11), epochs, as_json)
    else:
        samples: Iterable[PlannedSample] = _samples(run, planned, ranks, epochs, spike, steps or range(1, 2))
        if write_skip is not None:
            samples = list(samples)
            _write_skip(write_skip, planned, samples)
        _print((sample.as_json() for sample in samples), as_json)


def _run_of(uri: str, config: Path | None, options: Mapping[str, Any]) -> PlannedRun:
    """Return the data of the run that the settings or the options tell of; options win."""
    from iostack.preview.contracts import PlannedRun
    from iostack.registry import registry
    from iostack.sizes import parse_bytes

    given = {
        name: options[name] for name in ("seq_len", "seed", "lanes", "packing", "tokenizer", "text_column", "skip")
    }
    if options["window"] is not None:
        given["window_bytes"] = parse_bytes(options["window"])
    given = {name: value for name, value in given.items() if value is not None}
    if options["filters"]:
        given["filters"] = operator_specs(options["filters"], "--filter")
    if config is None:
        from iostack.corpus.corpus import open_corpus
        from iostack.loader.order.planned import Source

        if not uri:
            raise click.UsageError("plan needs a URI, or -c with a settings file or a run folder")
        opened = {"format": options["format"], "cache_dir": options["cache_dir"], **storage_options(options["storage"])}
        return PlannedRun([Source(open_corpus(uri, **opened))], options["batch_size"] or 8, given)
    readers = registry().listed("iostack_runs")
    run = next((found for read in readers if (found := read(config, uri)) is not None), None)
    if run is None:
        raise UsageError(
            f"{config} is neither a settings file nor the folder of a run", hint="see: iostack plan --help"
        )
    return PlannedRun(run.sources, options["batch_size"] or run.batch_size, {**run.arguments, **given}, run.metrics)


def _plan_of(run: PlannedRun, ranks: int) -> LoaderPlan:
    from iostack.loader.order.planning import plan_loader

    defaults: dict[str, Any] = {
        "seed": 0,
        "lanes": None,
        "seq_len": None,
        "packing": "none",
        "window_bytes": 256 << 20,
        "tokenizer": "bytes",
        "text_column": "text",
        "transforms": (),
    }
    return plan_loader(list(run.sources), ranks=ranks, **{**defaults, **run.arguments})


def _samples(
    run: PlannedRun, planned: LoaderPlan, ranks: int, epochs: int | None, spike: str | None, steps: range
) -> Iterator[PlannedSample]:
    """Yield the samples of the steps as they are found."""
    from iostack.plan.topology import Topology
    from iostack.preview.samples import Preview
    from iostack.preview.spikes import find_spikes, positions_of

    known = positions_of(run.metrics) if run.metrics is not None else {}
    if spike is not None and Path(spike).is_file():
        spikes = find_spikes(Path(spike))
        for each in spikes:
            click.echo(f"step {each.step}: loss {each.loss:.4f}, {each.median:.4f} before", err=True)
        wanted = ((each.step, each.position) for each in sorted(spikes, key=lambda each: each.position))
    else:
        if spike is not None:
            steps = _Steps().convert(spike, None, None)
        wanted = ((step, known.get(step, (step - 1) * run.batch_size)) for step in steps)
    Topology(run.batch_size, 0, ranks)  # refuses ranks that do not divide the batch
    with Preview(planned, Topology(run.batch_size), epochs=epochs) as preview:
        for step, position in wanted:
            yield from (sample.on_one_of(ranks) for sample in preview.at(position, step=step))


def _prove(planned: LoaderPlan, batch_size: int, prove: str, steps: range, epochs: int | None, as_json: bool) -> None:
    from iostack.preview.proof import prove as compare

    words = [word.strip() for word in prove.split(",")]
    if len(words) < 2 or not all(word.isdecimal() and int(word) for word in words):
        raise click.UsageError(f"--prove takes two or more numbers of ranks, such as 1,4,16, not {prove!r}")
    proof = compare(planned, batch_size, [int(word) for word in words], steps, epochs=epochs)
    if as_json:
        click.echo(json.dumps(asdict(proof)))
        return
    click.echo(
        f"steps {steps[0]} to {steps[-1]}: {proof.samples:,} samples, {proof.distinct:,} of them different, are the same on"
        f" {', '.join(map(str, proof.ranks))} ranks, each on one rank"
    )


def _write_skip(path: Path, planned: LoaderPlan, samples: list[PlannedSample]) -> None:
    from iostack.loader.order.skip_list import write_skip_list

    listed = [{"sample_id": each.sample_id, **each.as_json()} for each in samples]
    write_skip_list(path, listed, fingerprint=planned.fingerprint, numbered_by=planned.numbered_by())
    click.echo(f"{len(samples)} samples are in {path}: give it as data.skip, or Loader(skip=...)", err=True)


def _print(tables: Iterable[Mapping[str, Any]], as_json: bool) -> None:
    """Print one JSON object a line, or columns with a heading; lines come as they are found."""
    names: list[str] = []
    for table in tables:
        if as_json:
            click.echo(json.dumps(table))
            continue
        if list(table) != names:
            names = list(table)
            click.echo("\t".join(names))
        click.echo("\t".join(_cell(value) for value in table.values()))


def _cell(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
