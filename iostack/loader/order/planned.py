"""The plan of a loader: all that decides its order, of the whole and of each source, named field by field for the state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from iostack.corpus.contracts import Filter, Tokenizer, Transform
from iostack.corpus.corpus import Corpus
from iostack.errors import UsageError
from iostack.loader.order.named import FilterSpec, TransformSpec
from iostack.loader.order.schedule import Int64s
from iostack.loader.order.skip_list import digest_of
from iostack.plan.curriculum import Phase
from iostack.plan.indexed import IndexedPlan
from iostack.plan.skipping import SkipList, SkippingPlan
from iostack.plan.units import UnitPlan

_MOST_IN_VAIN, _EPOCHS_IN_VAIN = 1000, 32


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

    def numbered_by(self) -> dict[str, Any]:
        """Return what decides how sequences are numbered that are joined of documents; windows of one shard need nothing."""
        if not self.uses_units and self.packing == "none":
            return {}
        return {"seed": self.seed} | {
            name: value for name, value in self.fields().items() if name not in ("window", "epochs")
        }

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


def numbered_by(sources: Sequence[PlannedSource], seq_len: int | None, packing: str) -> dict[str, Any]:
    """Return what the identities of samples are numbered by, field by field, JSON-safe."""
    known: dict[str, Any] = {"seq_len": seq_len, "packing": packing}
    if seq_len is not None:
        for source in sources:
            known |= {f"sources[{source.number}].{name}": value for name, value in source.numbered_by().items()}
    return known


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

    def numbered_by(self) -> dict[str, Any]:
        """Return what a skip list must be written for, besides the corpora."""
        return numbered_by(self.sources, self.seq_len, self.packing)

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
