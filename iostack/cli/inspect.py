"""``iostack inspect``: what is behind a URI."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from iostack.cli.options import chosen_columns, columns_option, corpus_options, storage_options

if TYPE_CHECKING:
    from iostack.corpus.contracts import Sample
    from iostack.corpus.corpus import Corpus

# Counts are part of the fingerprint, by which a run knows its corpus.
_INDEX = "run iostack index URI, before a run: one started without it cannot resume after it"
_COUNT_UP_TO_BYTES = 256 << 20
_SHOWN_LETTERS = 100
_SHOWN_ITEMS = 8


@click.command(
    epilog="""\b
Examples:
  iostack inspect ./corpus
  iostack inspect s3://bucket/corpus -o anon=true
  iostack inspect ./corpus --columns text,url
  iostack inspect ./corpus --json
"""
)
@corpus_options
@columns_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def inspect(
    uri: str,
    format: str | None,
    cache_dir: str | None,
    storage: tuple[str, ...],
    columns: str | None,
    as_json: bool,
) -> None:
    """Show what is behind URI: format, shards, samples, bytes, columns, and the first sample.

    A corpus of at most 256 MiB that has no manifest, or lies on this machine, is opened shard by shard: that counts it, and names
    the shards that are damaged. A larger one is only compared with what its index says of sizes, where its format has one.
    """
    from iostack.corpus.corpus import open_corpus

    chosen = chosen_columns(columns)
    with open_corpus(uri, format=format, columns=chosen, cache_dir=cache_dir, **storage_options(storage)) as corpus:
        facts = _facts(corpus)
        first = _first_sample(corpus)
    if as_json:
        shown = {name: _preview(value) for name, value in first.items()}
        kinds = {name: _kind(value) for name, value in first.items()}
        click.echo(json.dumps({**facts, "columns": kinds, "first_sample": shown}))
    else:
        _print(facts, first)


def _facts(corpus: Corpus) -> dict[str, Any]:
    manifest = corpus.manifest
    total_bytes = int(manifest.bytes.sum())
    samples = manifest.total_samples
    if total_bytes <= _COUNT_UP_TO_BYTES and (not corpus.indexed or _is_local(corpus)):
        samples = _open_all(corpus)
    return {
        "uri": corpus.uri,
        "format": corpus.format.name,
        "shards": corpus.num_shards,
        "samples": samples,
        "tokens": manifest.total_tokens if corpus.holds_tokens else None,
        "bytes": total_bytes,
        "indexed": corpus.indexed,
        "fingerprint": corpus.fingerprint,
        "ignored": [info.path for info in corpus.ignored],
    }


def _is_local(corpus: Corpus) -> bool:
    return corpus.num_shards > 0 and corpus.origin.local_path(corpus.manifest.path(0)) is not None


def _open_all(corpus: Corpus) -> int:
    """Open every shard, and return their samples.

    Raises:
        ShardError: some are damaged.
    """
    from iostack.corpus.damage import or_damage, refuse_damaged
    from iostack.errors import ShardError

    def count(shard: int) -> int:
        return corpus.open_shard(shard).counts.samples

    counts = list(map(or_damage(count), range(corpus.num_shards)))
    refuse_damaged(counts, uri=corpus.uri)
    return sum(each for each in counts if not isinstance(each, ShardError))


def _first_sample(corpus: Corpus) -> Sample:
    for shard in range(corpus.num_shards):
        reader = corpus.open_shard(shard)
        if reader.counts.samples:
            sample = reader.read([0])[0]
            if isinstance(sample, Exception):
                raise sample
            return sample
    return {}


def _print(facts: dict[str, Any], first: Sample) -> None:
    ignored = facts["ignored"]
    more = f" and {len(ignored) - 3:,} more" if len(ignored) > 3 else ""
    lines = {
        "uri": facts["uri"],
        "format": facts["format"],
        "shards": f"{facts['shards']:,}",
        "samples": f"not counted yet: {_INDEX}" if facts["samples"] is None else f"{facts['samples']:,}",
        "tokens": None if facts["tokens"] is None else f"{facts['tokens']:,}",
        "bytes": f"{facts['bytes']:,}",
        "manifest": "yes" if facts["indexed"] else f"none: {_INDEX}",
        "fingerprint": facts["fingerprint"],
        "ignored": ", ".join(ignored[:3]) + more if ignored else None,
    }
    for name, value in lines.items():
        if value is not None:
            click.echo(f"{name:<12} {value}")
    click.echo("first sample" if first else "no samples")
    width = max(map(len, first), default=0)
    for name, value in first.items():
        click.echo(f"  {name:<{width}}  {_kind(value):<8}  {_preview(value)}")


def _kind(value: Any) -> str:
    return str(value.dtype) if hasattr(value, "dtype") else type(value).__name__


def _preview(value: Any) -> str:
    """Return the start of a value in printable characters."""
    if hasattr(value, "dtype") and value.ndim:
        more = f", ... ({len(value):,} in all)" if len(value) > _SHOWN_ITEMS else ""
        return f"[{', '.join(map(str, value[:_SHOWN_ITEMS]))}{more}]"
    if isinstance(value, bytes | str) and len(value) > _SHOWN_LETTERS:
        return f"{value[:_SHOWN_LETTERS]!r}... ({len(value):,} in all)"
    text = repr(value)
    return text if len(text) <= 2 * _SHOWN_LETTERS else f"{text[: 2 * _SHOWN_LETTERS]}..."
