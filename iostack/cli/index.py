"""``iostack index``: write the manifest of a corpus."""

from __future__ import annotations

import json

import click

from iostack.cli.options import chosen_columns, columns_option, corpus_options, storage_options
from iostack.cli.progress import show_progress


@click.command(
    epilog="""\b
Examples:
  iostack index ./corpus
  iostack index s3://bucket/corpus --threads 32
  iostack index ./tables --columns text,url
  iostack index s3://bucket/corpus -o anon=true --json
"""
)
@corpus_options
@columns_option
@click.option("--threads", type=click.IntRange(1, 256), default=8, show_default=True, help="Shards counted at once.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def index(
    uri: str,
    format: str | None,
    cache_dir: str | None,
    storage: tuple[str, ...],
    columns: str | None,
    threads: int,
    as_json: bool,
) -> None:
    """Count the samples of every shard of URI and write its manifest.

    With a manifest a corpus opens at once, knows its length and is shuffled as a whole. Index before training: a run
    that was started without a manifest, or with another one, cannot resume after it was written. Run it again after shards were
    added or changed: only those are counted. Shards that cannot be read are reported by name, and nothing is written; so are shards of
    Parquet and Arrow whose columns differ: with --columns only those must be the same.
    """
    from iostack.corpus.index import build_manifest

    with show_progress("counting", "shards") as progress:
        done = build_manifest(
            uri,
            format=format,
            columns=chosen_columns(columns),
            cache_dir=cache_dir,
            threads=threads,
            progress=progress,
            **storage_options(storage),
        )
    manifest = done.manifest
    if as_json:
        facts = {
            "manifest": done.file,
            "format": manifest.format,
            "shards": manifest.num_shards,
            "counted": done.num_counted,
            "samples": manifest.total_samples,
            "tokens": manifest.total_tokens,
            "fingerprint": manifest.fingerprint,
        }
        click.echo(json.dumps(facts))
        return
    tokens = "" if manifest.total_tokens is None else f", {manifest.total_tokens:,} tokens"
    click.echo(
        f"{done.file}: {manifest.num_shards:,} {manifest.format} shards ({done.num_counted:,} counted now), "
        f"{manifest.total_samples:,} samples{tokens}"
    )
