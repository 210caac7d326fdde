"""How a loader plans each of its sources, decided from the manifests and settings alone, and named field by field."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import xxhash

from iostack.corpus.contracts import Filter, TableFormat, Tokenizer, Transform
from iostack.corpus.corpus import Corpus
from iostack.errors import PlanError, SettingsError, UsageError
from iostack.loader.order.named import FilterSpec, TransformSpec, find_filters, find_tokenizer, find_transforms
from iostack.loader.order.phases import PhaseSpec, read_phases, refuse_epochs_by_data
from iostack.loader.order.schedule import Int64s
from iostack.loader.order.skip_list import SkipSpec, digest_of, read_skip_list
from iostack.loader.order.token_counts import token_sequences
from iostack.plan.curriculum import Phase
from iostack.plan.indexed import IndexedPlan
from iostack.plan.keyed import derive_key
from iostack.plan.mixing import integer_weights
from iostack.plan.skipping import SkipList, SkippingPlan
from iostack.plan.units import UnitPlan, choose_unit_lanes, choose_unit_rows
from iostack.plan.windows import choose_lanes, choose_window
from iostack.suggest import closest

_TYPICAL_TEXT_COMPRESSION = 4
_LANES_LIMIT = 1 << 20
"""Each takes memory of its own; even the largest runs have fewer ranks."""
_MOST_IN_VAIN, _EPOCHS_IN_VAIN = 1000, 32
_SOURCE = 8
"""Purpose of keys; see ``iostack.plan.indexed``."""
PACKINGS = ("none", "split", "best_fit")
"""How documents become sequences: as one stream that tells them apart no more, as one that does, or whole."""


@dataclass(frozen=True)
class Source:
    """One corpus of a mix. ``weight`` is its share of the samples; ``transforms`` run before tokenising and batching.

    Only samples that all ``filters`` keep come; they look at samples as they stand in the shards, before any transform.

    After ``epochs`` the source leaves the mix, and the others go on with the weights that they have.
    """

    corpus: Corpus
    weight: float = 1.0
    transforms: Sequence[TransformSpec] = ()
    epochs: int | None = None
    filters: Sequence[FilterSpec] = ()


@dataclass(frozen=True)
class PlannedSource:
    """A source with all that decides its order.

    ``kind`` is tokens, documents (of token shards), text, rows, unindexed or filtered.

    ``counts`` is int64[S]: what the plan permutes, of each shard (sequences or rows; -1 where not known). ``unit_bytes``
    is about what a unit takes uncompressed. ``tokenizer_choice`` is what named the tokenizer, if anything did. After
    ``epochs`` a source of a mix is used up.
    """

    corpus: Corpus
    number: int
    seed: int
    kind: str
    counts: Int64s
    window: int
    transforms: Sequence[Transform]
    transform_names: Sequence[Any]
    packing: str = "none"
    unit_rows: int = 0
    unit_bytes: float = 0
    tokenizer: Tokenizer | None = None
    tokenizer_choice: str = ""
    text_column: str = ""
    epochs: int | None = None
    skip: SkipList = field(default_factory=SkipList)
    filters: Sequence[Filter] = ()
    filter_names: Sequence[Any] = ()

    @property
    def uses_units(self) -> bool:
        """Whether outputs are known only once units are read."""
        return self.kind in ("text", "documents", "unindexed", "filtered")

    @property
    def num_units(self) -> int:
        """Units of one epoch, of a source that uses them."""
        return int(np.where(self.counts < 0, 1, -(-self.counts // max(self.unit_rows, 1))).sum())

    @property
    def most_units_in_vain(self) -> int:
        """How many units in a row may give a lane nothing: with filters about an epoch's, for reading more costs hours."""
        return self.num_units + _MOST_IN_VAIN if self.filters else _EPOCHS_IN_VAIN * self.num_units

    def fields(self) -> dict[str, Any]:
        """Return what decides order, for the state."""
        known: dict[str, Any] = {"kind": self.kind, "window": self.window}
        if self.filter_names:
            known["filters"] = list(self.filter_names)
        if self.transform_names:
            known["transforms"] = list(self.transform_names)
        if self.uses_units:
            known["unit_rows"] = self.unit_rows
        if self.tokenizer is not None:
            known |= {"tokenizer": self.tokenizer.name, "text_column": self.text_column}
        if self.epochs is not None:
            known["epochs"] = self.epochs
        return known

    def indexed_plan(self, lanes: int) -> IndexedPlan:
        """Return the plan of a source whose counts are known."""
        if not len(self.skip):
            return IndexedPlan(self.counts, seed=self.seed, lanes=lanes, window=self.window)
        return SkippingPlan(
            self.counts, seed=self.seed, lanes=lanes, window=self.window, source=self.number, skip=self.skip
        )

    def unit_plan(self, lanes: int) -> UnitPlan:
        """Return the plan of a source that uses units."""
        return UnitPlan(self.counts, max(self.unit_rows, 1), seed=self.seed, lanes=lanes, window=self.window)


@dataclass(frozen=True)
class LoaderPlan:
    """All that decides the order of a loader, besides the corpora themselves."""

    sources: Sequence[PlannedSource]
    seed: int
    lanes: int
    weights: tuple[int, ...]
    seq_len: int | None
    packing: str = "none"
    fingerprint: str = field(default="")
    phases: tuple[Phase, ...] = ()
    skip: SkipList = field(default_factory=SkipList)

    def shard_name(self, source: int, shard: int) -> str:
        """Return the URI of a shard of a source, without credentials."""
        return self.sources[source].corpus.shard_name(shard)

    def fields(self) -> dict[str, Any]:
        """Return the plan field by field, JSON-safe; two loaders with equal fields and fingerprint agree on all samples."""
        known: dict[str, Any] = {
            "seed": self.seed,
            "lanes": self.lanes,
            "weights": list(self.weights),
            "seq_len": self.seq_len,
            "sources": [source.fields() for source in self.sources],
        }
        if self.phases:
            known["phases"] = [{"after_samples": phase.start, "weights": list(phase.weights)} for phase in self.phases]
        if len(self.skip):
            known["skip"] = digest_of(self.skip)
        if self.packing != "none":
            known["packing"] = self.packing
        return known


def as_sources(given: Corpus | Sequence[Any]) -> list[Source]:
    """Return the sources of a loader's first argument: a corpus, or a list of corpora, (corpus, weight) or Source."""
    items = [given] if isinstance(given, Corpus | Source) else list(given)
    sources: list[Source] = []
    for item in items:
        if isinstance(item, Source):
            sources.append(item)
        elif isinstance(item, Corpus):
            sources.append(Source(item))
        elif isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], Corpus):
            sources.append(Source(item[0], item[1]))
        else:
            raise UsageError(f"a loader reads a Corpus, (Corpus, weight) or Source, not {type(item).__name__}")
    if not sources:
        raise UsageError("a loader needs at least one corpus")
    return sources


def plan_loader(
    sources: Sequence[Source],
    *,
    ranks: int,
    seed: int,
    lanes: int | None,
    seq_len: int | None,
    packing: str,
    window_bytes: int,
    tokenizer: str | Tokenizer,
    text_column: str,
    transforms: Sequence[TransformSpec],
    filters: Sequence[FilterSpec] = (),
    phases: Sequence[PhaseSpec] = (),
    skip: SkipSpec = (),
) -> LoaderPlan:
    """Return the plan of a new loader; opens no shard.

    Raises:
        PlanError: there is nothing to read, or nothing long enough. SettingsError: no such packing.
    """
    if packing not in PACKINGS:
        raise SettingsError(f"there is no packing {packing!r}", hint=closest(packing, PACKINGS))
    if packing != "none" and seq_len is None:
        raise PlanError(f"packing={packing!r} needs the length of sequences", hint="set seq_len too")
    planned = [
        _plan_source(
            source,
            number,
            _source_seed(seed, number),
            seq_len,
            packing,
            window_bytes,
            tokenizer,
            text_column,
            (*source.transforms, *transforms),
            (*source.filters, *filters),
        )
        for number, source in enumerate(sources)
    ]
    if len(sources) > 1:
        planned = [_with_epochs(source, given.epochs) for source, given in zip(planned, sources, strict=True)]
    fingerprint = _joint_fingerprint([source.corpus.fingerprint for source in sources])
    skip_list = read_skip_list(skip, fingerprint=fingerprint, seq_len=seq_len)
    planned = [replace(source, skip=skip_list) for source in planned]
    if lanes is None:
        lanes = _choose_lanes(planned, ranks)
    if not 1 <= lanes <= _LANES_LIMIT:
        raise PlanError(f"lanes must be 1 to {_LANES_LIMIT}, not {lanes}")
    return LoaderPlan(
        sources=planned,
        seed=seed,
        lanes=lanes,
        weights=integer_weights([source.weight for source in sources]),
        seq_len=seq_len,
        fingerprint=fingerprint,
        packing=packing,
        phases=read_phases(phases, num_sources=len(sources)),
        skip=skip_list,
    )


def _plan_source(
    source: Source,
    number: int,
    seed: int,
    seq_len: int | None,
    packing: str,
    window_bytes: int,
    tokenizer: str | Tokenizer,
    text_column: str,
    transform_specs: Sequence[TransformSpec],
    filter_specs: Sequence[FilterSpec],
) -> PlannedSource:
    corpus, manifest = source.corpus, source.corpus.manifest
    transforms, names = find_transforms(transform_specs)
    filters, filter_names = find_filters(filter_specs)
    total_bytes = int(manifest.bytes.sum())
    if corpus.holds_tokens and seq_len is not None:
        if transforms:
            raise UsageError(f"{corpus.uri}: transforms map samples, but token shards are cut into sequences directly")
        if filters:
            raise UsageError(f"{corpus.uri}: filters choose samples, but token shards are cut into sequences directly")
        if packing != "none":
            _refuse_no_documents(corpus, packing)
    if corpus.holds_tokens and seq_len is not None and packing != "best_fit":
        counts = token_sequences(corpus, seq_len)
        window = choose_window(window_bytes, total_bytes / int(counts.sum()))
        return PlannedSource(corpus, number, seed, "tokens", counts, window, transforms, names, packing)

    counts = manifest.samples if manifest.samples is not None else np.full(manifest.num_shards, -1, np.int64)
    if not counts.any():
        raise PlanError(
            f"{corpus.uri} holds no samples: {manifest.num_shards} shards, all empty",
            hint="use a corpus that holds some",
        )

    if seq_len is None and manifest.samples is not None and filters:
        num_rows = int(counts.sum())
        unit_rows = choose_unit_rows(num_rows, total_bytes, 0)
        unit_bytes = total_bytes / num_rows * unit_rows
        window = choose_window(window_bytes, unit_bytes)
        return PlannedSource(
            corpus,
            number,
            seed,
            "filtered",
            counts,
            window,
            transforms,
            names,
            unit_rows=unit_rows,
            unit_bytes=unit_bytes,
            filters=filters,
            filter_names=filter_names,
        )

    if seq_len is None and manifest.samples is not None:
        window = choose_window(window_bytes, total_bytes / int(counts.sum()))
        return PlannedSource(corpus, number, seed, "rows", counts, window, transforms, names)

    if seq_len is None:
        shard_bytes = total_bytes / manifest.num_shards
        window = choose_window(window_bytes, shard_bytes)
        return PlannedSource(
            corpus,
            number,
            seed,
            "unindexed",
            counts,
            window,
            transforms,
            names,
            unit_bytes=shard_bytes,
            filters=filters,
            filter_names=filter_names,
        )

    if corpus.columns is None and not (transforms or filters) and isinstance(corpus.format, TableFormat):
        corpus = corpus.with_columns([text_column])  # nothing else is looked at
    text_bytes = total_bytes * (_TYPICAL_TEXT_COMPRESSION if _is_compressed(corpus) else 1)
    unit_rows = choose_unit_rows(int(counts.sum()), text_bytes, seq_len) if manifest.samples is not None else 0
    num_units = int((-(-counts // unit_rows)).sum()) if unit_rows else manifest.num_shards
    window = choose_window(window_bytes, text_bytes / num_units)
    holds_tokens = corpus.holds_tokens
    return PlannedSource(
        corpus,
        number,
        seed,
        "documents" if holds_tokens else "text",
        counts,
        window,
        transforms,
        names,
        packing,
        unit_rows=unit_rows,
        unit_bytes=text_bytes / num_units,
        tokenizer=None if holds_tokens else find_tokenizer(tokenizer),
        tokenizer_choice=tokenizer if isinstance(tokenizer, str) else "",
        text_column="" if holds_tokens else text_column,
        filters=filters,
        filter_names=filter_names,
    )


def _is_compressed(corpus: Corpus) -> bool:
    if isinstance(corpus.format, TableFormat):
        return corpus.format.is_compressed
    return corpus.manifest.num_shards > 0 and bool(corpus.manifest.shard(0).compression)


def _with_epochs(source: PlannedSource, epochs: int | None) -> PlannedSource:
    if epochs is not None:
        refuse_epochs_by_data(source.corpus, epochs, by_data=source.uses_units, kind=source.kind)
    return replace(source, epochs=epochs)


def _refuse_no_documents(corpus: Corpus, packing: str) -> None:
    """Refuse to pack token shards of a format that does not say that it tells documents apart."""
    if not getattr(corpus.format, "holds_documents", False):
        raise UsageError(
            f"{corpus.uri}: packing={packing!r} needs the documents of token shards, and the format"
            f" {corpus.format.name!r} does not tell them apart",
            hint='use packing="none", or shards that do, such as Megatron .bin/.idx',
        )


def _source_seed(seed: int, number: int) -> int:
    """Sources of a mix that are alike must not be read in the same order."""
    return derive_key(seed, _SOURCE, number) if number else seed


def _choose_lanes(sources: Sequence[PlannedSource], ranks: int) -> int:
    by_units = [choose_unit_lanes(ranks, source.num_units) for source in sources if source.uses_units]
    by_samples = [choose_lanes(ranks, int(source.counts.sum())) for source in sources if not source.uses_units]
    return min(by_units + by_samples)


def _joint_fingerprint(fingerprints: Sequence[str]) -> str:
    if len(fingerprints) == 1:
        return fingerprints[0]
    return xxhash.xxh3_128_hexdigest("\n".join(fingerprints).encode())
