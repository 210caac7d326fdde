"""How the plan of a loader is made, from the manifests and settings alone; no shard is opened."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import xxhash

from iostack.corpus.contracts import Tokenizer
from iostack.errors import PlanError, SettingsError
from iostack.loader.order.kinds import Cutting, plan_source
from iostack.loader.order.named import FilterSpec, TransformSpec
from iostack.loader.order.phases import PhaseSpec, read_phases, refuse_epochs_by_data
from iostack.loader.order.planned import LoaderPlan, PlannedSource, Source, numbered_by
from iostack.loader.order.skip_list import SkipSpec, read_skip_list
from iostack.plan.keyed import derive_key
from iostack.plan.mixing import integer_weights
from iostack.plan.units import choose_unit_lanes
from iostack.plan.windows import choose_lanes
from iostack.suggest import closest

_LONGEST = 1 << 50
_LANES_LIMIT = 1 << 20
"""Each takes memory of its own; even the largest runs have fewer ranks."""
_SOURCE = 8
"""Purpose of keys; see ``iostack.plan.indexed``."""
PACKINGS = ("none", "split", "best_fit")
"""How documents become sequences: as one stream that tells them apart no more, as one that does, or whole."""


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
    if seq_len is not None and seq_len > _LONGEST:
        raise PlanError(f"seq_len must be at most {_LONGEST:,}, not {seq_len:,}", hint="use a smaller seq_len")
    if packing != "none" and seq_len is None:
        raise PlanError(f"packing={packing!r} needs the length of sequences", hint="set seq_len too")
    cutting = Cutting(seq_len, packing, window_bytes, tokenizer, text_column)
    planned = [
        plan_source(
            source,
            number,
            _source_seed(seed, number),
            cutting,
            (*source.transforms, *transforms),
            (*source.filters, *filters),
        )
        for number, source in enumerate(sources)
    ]
    if len(sources) > 1:
        planned = [_with_epochs(source, given.epochs) for source, given in zip(planned, sources, strict=True)]
    fingerprint = _joint_fingerprint([source.corpus.fingerprint for source in sources])
    numbered = numbered_by(planned, seq_len, packing)
    skip_list = read_skip_list(skip, fingerprint=fingerprint, numbered_by=numbered)
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


def _with_epochs(source: PlannedSource, epochs: int | None) -> PlannedSource:
    if epochs is not None:
        refuse_epochs_by_data(source.corpus, epochs, by_data=source.uses_units, kind=source.kind)
    return replace(source, epochs=epochs)


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
