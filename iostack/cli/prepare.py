"""``iostack prepare``: convert a corpus into shards of another format."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from iostack.cli.options import corpus_options, operator_specs, storage_options
from iostack.cli.progress import show_progress

if TYPE_CHECKING:
    from iostack.prepare.planning import Planned
    from iostack.prepare.run import Converted

_SHOWN_BAD = 5


@click.command(
    epilog="""\b
Examples:
  iostack prepare ./texts ./tokens --to tokens --tokenizer huggingface:tokenizer.json
  iostack prepare ./images s3://bucket/images --to webdataset --shard-bytes 512MiB
  iostack prepare s3://bucket/text ./text --to jsonl --columns text,url --jobs 8
  iostack prepare ./texts ./long --to jsonl --filter '{"name": "length", "column": "text", "min": 200}'
  iostack prepare ./texts ./mds --to mds --dry-run
"""
)
@corpus_options
@click.argument("target", metavar="TARGET")
@click.option("--to", required=True, metavar="FORMAT", help="tokens, webdataset, parquet, mds, jsonl, or a plugin's.")
@click.option("--shard-bytes", default="256 MiB", show_default=True, metavar="SIZE", help="Aim at shards of this size.")
@click.option("--tokenizer", metavar="NAME[:ARGUMENT]", help="For --to tokens, from text.")
@click.option("--text-column", metavar="NAME", help="For --to tokens: the column that holds the text.")
@click.option("--compress", metavar="KIND", help="zst or none; text is compressed by default, tars are not.")
@click.option("--columns", metavar="NAME,...", help="Keep only these columns.")
@click.option("--filter", "filters", multiple=True, metavar="NAME|JSON", help="Leave samples out; may be repeated.")
@click.option("--transform", "transforms", multiple=True, metavar="NAME|JSON", help="Map the samples; may be repeated.")
@click.option("--max-bad-samples", type=click.IntRange(0), default=0, show_default=True, help="Leave out so many.")
@click.option("--jobs", type=click.IntRange(1, 1024), help="Processes; by default one per core.")
@click.option("--engine", default="processes", show_default=True, metavar="NAME", help="Where the pieces are made.")
@click.option("-O", "--target-option", "target_storage", metavar="KEY=VALUE", multiple=True, help="As -o, for TARGET.")
@click.option("--verify/--no-verify", default=True, show_default=True, help="Read every shard again and compare.")
@click.option("--overwrite", is_flag=True, help="Remove what a former conversion made in TARGET, and start anew.")
@click.option("--dry-run", is_flag=True, help="Only tell what would be made.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def prepare(
    uri: str,
    target: str,
    format: str | None,
    cache_dir: str | None,
    storage: tuple[str, ...],
    to: str,
    shard_bytes: str,
    tokenizer: str | None,
    text_column: str | None,
    compress: str | None,
    columns: str | None,
    filters: tuple[str, ...],
    transforms: tuple[str, ...],
    max_bad_samples: int,
    jobs: int | None,
    engine: str,
    target_storage: tuple[str, ...],
    verify: bool,
    overwrite: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Convert the corpus at URI into shards below TARGET, a folder or a prefix of any writable storage.

    The rows are cut into pieces by arithmetic, and each piece becomes one shard: read again and compared before it counts,
    and moved into place as a whole. Shards are the same for any number of jobs. The same command goes on where it was
    stopped or killed; with other options or another source it is refused. At the end TARGET has a manifest.
    """
    from iostack.prepare.planning import plan_conversion
    from iostack.prepare.reading import Source
    from iostack.prepare.run import convert

    given = {"tokenizer": tokenizer, "text_column": text_column, "compress": compress}
    chosen = [name.strip() for name in (columns or "").split(",") if name.strip()]
    source = Source(
        uri,
        format,
        cache_dir,
        storage_options(storage),
        operator_specs(transforms, "--transform"),
        chosen,
        operator_specs(filters, "--filter"),
    )
    with show_progress("counting", "shards") as counted:
        planned = plan_conversion(
            source,
            target,
            to=to,
            target_options=storage_options(target_storage),
            writer_options={name: value for name, value in given.items() if value is not None},
            shard_bytes=_bytes_of_shards(shard_bytes),
            max_bad_samples=max_bad_samples,
            verify=verify,
            progress=counted,
        )
    if dry_run:
        _tell_plan(planned, as_json)
        return
    with show_progress("preparing", "pieces") as show:
        done = convert(
            planned,
            engine=engine,
            engine_options={} if jobs is None else {"jobs": jobs},
            overwrite=overwrite,
            progress=lambda now: show(now.finished, now.pieces, _rates(now)),
        )
    _tell(planned, done, as_json)


def _rates(now: Converted) -> str:
    return f"{now.samples_now / now.wall_s:,.0f} samples/s, {now.bytes_now / now.wall_s / 1e6:,.1f} MB/s"


def _tell_plan(planned: Planned, as_json: bool) -> None:
    from iostack.sizes import format_bytes

    facts = {
        "pieces": len(planned.pieces),
        "rows": planned.pieces.total_rows,
        "rows_per_piece": planned.pieces.rows,
        "estimated_bytes": planned.estimated_bytes,
        "layout": planned.job.layout,
    }
    if as_json:
        click.echo(json.dumps(facts))
        return
    click.echo(
        f"{facts['rows']:,} rows in {facts['pieces']:,} pieces of {facts['rows_per_piece']:,}: as many shards, "
        f"about {format_bytes(planned.estimated_bytes)} in all"
    )


def _tell(planned: Planned, done: Converted, as_json: bool) -> None:
    from iostack.errors import redact
    from iostack.sizes import format_bytes

    if as_json:
        facts: dict[str, Any] = {
            "target": redact(planned.job.target_uri),
            "format": planned.writer.format,
            "pieces": done.pieces,
            "pieces_made": done.pieces_now,
            "shards": done.shards,
            "samples": done.samples,
            "tokens": done.tokens,
            "bytes": done.bytes,
            "filtered_out": done.num_filtered,
            "bad_samples": done.num_bad,
            "wall_s": round(done.wall_s, 3),
            "fingerprint": done.fingerprint,
        }
        click.echo(json.dumps(facts))
        return
    if done.lost:
        click.echo(f"{done.lost:,} shards were not there any more and were made again", err=True)
    for bad in done.bad[:_SHOWN_BAD]:
        click.echo(f"left out: {bad}", err=True)
    if done.num_bad:
        click.echo(f"left out {done.num_bad:,} bad samples", err=True)
    if done.num_filtered:
        click.echo(f"filtered out {done.num_filtered:,} samples", err=True)
    tokens = "" if done.tokens is None else f", {done.tokens:,} tokens"
    click.echo(
        f"{redact(planned.job.target_uri)}: {done.shards:,} {planned.writer.format} shards "
        f"({done.shards_now:,} made now), {done.samples:,} samples{tokens}, {format_bytes(done.bytes)}"
    )


def _bytes_of_shards(given: str) -> int:
    from iostack.errors import SettingsError
    from iostack.sizes import parse_bytes

    if (wanted := parse_bytes(given)) < 1:
        raise SettingsError(f"--shard-bytes {given}: shards of no bytes", hint="256 MiB suits most storage")
    return wanted
