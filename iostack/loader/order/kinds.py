"""Which kind a source is of, and what its plan permutes: sequences, rows, or units of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from iostack.corpus.contracts import TableFormat, Tokenizer
from iostack.corpus.corpus import Corpus
from iostack.errors import PlanError, UsageError
from iostack.loader.order.named import FilterSpec, TransformSpec, find_filters, find_tokenizer, find_transforms
from iostack.loader.order.planned import PlannedSource, Source
from iostack.loader.order.token_counts import token_sequences
from iostack.plan.units import choose_unit_rows
from iostack.plan.windows import choose_window

_TYPICAL_TEXT_COMPRESSION = 4


@dataclass(frozen=True)
class Cutting:
    """What a loader makes of all its sources: sequences of ``seq_len``, or whole samples where it is None."""

    seq_len: int | None
    packing: str
    window_bytes: int
    tokenizer: str | Tokenizer
    text_column: str


def plan_source(
    source: Source,
    number: int,
    seed: int,
    cutting: Cutting,
    transform_specs: Sequence[TransformSpec],
    filter_specs: Sequence[FilterSpec],
) -> PlannedSource:
    """Return the plan of a source.

    Raises:
        PlanError: it holds nothing, or nothing long enough. UsageError: it cannot be cut, packed or chosen from like that.
    """
    corpus, manifest = source.corpus, source.corpus.manifest
    transforms, transform_names = find_transforms(transform_specs)
    filters, filter_names = find_filters(filter_specs)
    counts = manifest.samples if manifest.samples is not None else np.full(manifest.num_shards, -1, np.int64)
    planned = PlannedSource(
        corpus,
        number,
        seed,
        kind="rows",
        counts=counts,
        window=0,
        transforms=transforms,
        transform_names=transform_names,
        filters=filters,
        filter_names=filter_names,
    )
    if corpus.holds_tokens and cutting.seq_len is not None:
        _refuse_samples_of_tokens(planned, cutting.packing)
        if cutting.packing != "best_fit":
            return _tokens(planned, cutting, cutting.seq_len)
    if not counts.any():
        raise PlanError(
            f"{corpus.uri} holds no samples: {manifest.num_shards} shards, all empty",
            hint="use a corpus that holds some",
        )
    if cutting.seq_len is None:
        return _samples(planned, cutting.window_bytes)
    return _documents(planned, cutting, cutting.seq_len)


def _tokens(planned: PlannedSource, cutting: Cutting, seq_len: int) -> PlannedSource:
    """Sequences of token shards, by arithmetic."""
    counts = token_sequences(planned.corpus, seq_len)
    window = choose_window(cutting.window_bytes, _total_bytes(planned.corpus) / int(counts.sum()))
    return replace(planned, kind="tokens", counts=counts, window=window, packing=cutting.packing)


def _samples(planned: PlannedSource, window_bytes: int) -> PlannedSource:
    """Whole samples: rows by arithmetic, or units where counts are not known or filters choose."""
    manifest, total_bytes = planned.corpus.manifest, _total_bytes(planned.corpus)
    if manifest.samples is None:
        shard_bytes = total_bytes / manifest.num_shards
        window = choose_window(window_bytes, shard_bytes)
        return replace(planned, kind="unindexed", window=window, unit_bytes=shard_bytes)
    num_rows = int(planned.counts.sum())
    if not planned.filters:
        return replace(planned, window=choose_window(window_bytes, total_bytes / num_rows))
    unit_rows = choose_unit_rows(num_rows, total_bytes, 0)
    unit_bytes = total_bytes / num_rows * unit_rows
    window = choose_window(window_bytes, unit_bytes)
    return replace(planned, kind="filtered", window=window, unit_rows=unit_rows, unit_bytes=unit_bytes)


def _documents(planned: PlannedSource, cutting: Cutting, seq_len: int) -> PlannedSource:
    """Documents by units: text that is tokenised on the fly, or those of token shards that are packed whole."""
    corpus = planned.corpus
    if (
        corpus.columns is None
        and not (planned.transforms or planned.filters)
        and isinstance(corpus.format, TableFormat)
    ):
        corpus = corpus.with_columns([cutting.text_column])  # nothing else is looked at
    counts, is_counted = planned.counts, corpus.manifest.samples is not None
    text_bytes = _total_bytes(corpus) * (_TYPICAL_TEXT_COMPRESSION if _is_compressed(corpus) else 1)
    unit_rows = choose_unit_rows(int(counts.sum()), text_bytes, seq_len) if is_counted else 0
    num_units = int((-(-counts // unit_rows)).sum()) if unit_rows else corpus.manifest.num_shards
    planned = replace(
        planned,
        corpus=corpus,
        kind="documents",
        window=choose_window(cutting.window_bytes, text_bytes / num_units),
        packing=cutting.packing,
        unit_rows=unit_rows,
        unit_bytes=text_bytes / num_units,
    )
    if corpus.holds_tokens:
        return planned
    tokenizer = cutting.tokenizer
    return replace(
        planned,
        kind="text",
        tokenizer=find_tokenizer(tokenizer),
        tokenizer_choice=tokenizer if isinstance(tokenizer, str) else "",
        text_column=cutting.text_column,
    )


def _total_bytes(corpus: Corpus) -> int:
    return int(corpus.manifest.bytes.sum())


def _is_compressed(corpus: Corpus) -> bool:
    if isinstance(corpus.format, TableFormat):
        return corpus.format.is_compressed
    return corpus.manifest.num_shards > 0 and bool(corpus.manifest.shard(0).compression)


def _refuse_samples_of_tokens(planned: PlannedSource, packing: str) -> None:
    """Refuse what is done to samples, and to pack shards of a format that does not say that it tells documents apart."""
    corpus = planned.corpus
    if planned.transforms:
        raise UsageError(f"{corpus.uri}: transforms map samples, but token shards are cut into sequences directly")
    if planned.filters:
        raise UsageError(f"{corpus.uri}: filters choose samples, but token shards are cut into sequences directly")
    if packing != "none" and not getattr(corpus.format, "holds_documents", False):
        raise UsageError(
            f"{corpus.uri}: packing={packing!r} needs the documents of token shards, and the format"
            f" {corpus.format.name!r} does not tell them apart",
            hint='use packing="none", or shards that do, such as Megatron .bin/.idx',
        )
