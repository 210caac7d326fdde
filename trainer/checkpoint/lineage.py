"""Which saved steps belong to the run as it went on last.

Every start of a run is a generation; every manifest names its parent, the step that its run had before it. The newest
manifest of the highest generation is the head, and the chain of its parents is the lineage:

    generation 1:  10.1 <- 20.1 <- 30.1        30.1 is off the lineage: generation 2 went on from 20.1
                             ^
    generation 2:            20.1 <- 30.2 <- 40.2   head

Where a manifest of the chain cannot be read or is gone, the chain goes on with the newest one before it. That the manifest
of the head itself is gone shows only in ``latest.json``, which named it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from iostack.errors import BrokenStepError
from trainer.checkpoint.documents import ManifestFile
from trainer.checkpoint.layout import GENERATIONS, LATEST, MANIFESTS, StepId, parse_generation, parse_manifest
from trainer.checkpoint.manifest import read_manifest
from trainer.checkpoint.store import Store

_MAX_HINT_BYTES = 4096


def saved_steps(store: Store) -> list[StepId]:
    """Return all steps that have a manifest, newest first."""
    return sorted(filter(None, map(parse_manifest, store.files(MANIFESTS))), reverse=True)


def newest_generation(store: Store) -> int:
    """Return the highest generation that was started, 0 if none was."""
    return max((n for n in map(parse_generation, store.files(GENERATIONS)) if n is not None), default=0)


def lineage(store: Store) -> Iterator[tuple[StepId, ManifestFile | BrokenStepError]]:
    """Give the steps of the newest lineage from its head back, each with its manifest or with what is wrong with it."""
    saved = saved_steps(store)
    step = saved[0] if saved else None
    lost = _named_by_hint(store)
    if lost is not None and lost not in saved and (step is None or lost > step):
        yield (
            lost,
            BrokenStepError(f"the manifest of step {lost.step} in {store.uri} is gone, though {LATEST} names it"),
        )
    while step is not None:
        parent: StepId | None = None
        try:
            manifest: ManifestFile | BrokenStepError = read_manifest(store, step)
        except BrokenStepError as error:
            manifest = error
        yield step, manifest
        if isinstance(manifest, ManifestFile):
            if manifest.parent is None:
                return
            parent = StepId(step=manifest.parent.step, generation=manifest.parent.generation)
        step = parent if parent in saved else _newest_before(step, saved)


def _named_by_hint(store: Store) -> StepId | None:
    """Return the step that the hint names, if there is a hint and it makes sense."""
    try:
        hint = json.loads(store.read(LATEST, limit=_MAX_HINT_BYTES))
        return StepId(step=int(hint["step"]), generation=int(hint["generation"]))
    except (OSError, BrokenStepError, ArithmeticError, LookupError, TypeError, ValueError, RecursionError):
        return None


def _newest_before(step: StepId, saved: list[StepId]) -> StepId | None:
    older = (other for other in saved if other < step and other.step <= step.step)
    return next(older, None)
