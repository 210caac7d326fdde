"""What is deleted, and in which order: the manifest first, so that a step is whole or not there, then its data.

The data goes at the next save or start, not at once: whoever read the manifest just before has had that long to read the
step. It goes before the next step is written, so that no more space is taken than if it went at once.

Only the process that holds the newest generation deletes. It keeps the newest complete steps of the lineage, and the
step that it was restored from: that one is known to be readable, as nothing newer is. What could not be deleted is
logged and tried again after the next save.
"""

from __future__ import annotations

from contextlib import suppress

from iostack import logs
from iostack.errors import BrokenStepError, CheckpointError
from trainer.checkpoint.documents import ManifestFile
from trainer.checkpoint.layout import STEPS, Attempt, StepId, manifest_path, parse_attempt
from trainer.checkpoint.lineage import lineage, newest_generation, saved_steps
from trainer.checkpoint.manifest import check_complete
from trainer.checkpoint.store import Store, locate

logger = logs.logger(__name__)


def collect(store: Store, *, generation: int, keep: int, verified: StepId | None) -> None:
    """Delete the manifests of steps that are not to be kept: ``keep`` complete ones of the lineage stay, all if it is 0.

    ``collect_orphans`` deletes their data later. Failures are logged, never raised.
    """
    try:
        if keep and newest_generation(store) == generation:
            kept = _kept(store, keep)
            if kept:
                _delete_steps(store, kept | {verified}, generation)
    except (OSError, CheckpointError) as error:
        logger.warning("old checkpoints in %s could not be deleted: %s", store.uri, error)


def collect_orphans(store: Store, *, generation: int) -> None:
    """Delete the attempts that no manifest names and that nobody can still be writing: those before the newest step
    of this generation. Failures are logged, never raised."""
    try:
        saved = set(saved_steps(store))
        newest = max(step for step in {*saved, StepId(generation, 0)} if step.generation <= generation)
        for attempt in filter(None, map(parse_attempt, store.folders(STEPS))):
            if attempt.id not in saved and attempt.id < newest:
                store.delete_folder(attempt.folder)
    except (OSError, CheckpointError) as error:
        logger.warning("unfinished or old checkpoints in %s could not be deleted: %s", store.uri, error)


def delete_attempt(store: Store, attempt: Attempt) -> None:
    """Delete what a failed attempt wrote, if the store lets us: begin() of the next run would find it otherwise."""
    try:
        store.delete_folder(attempt.folder)
    except OSError as error:
        logger.warning("%s could not be deleted: %s", locate(store, attempt.folder), error)


def _kept(store: Store, keep: int) -> set[StepId | None]:
    kept: set[StepId | None] = set()
    for step, manifest in lineage(store):
        if isinstance(manifest, ManifestFile):
            with suppress(BrokenStepError):
                check_complete(store, manifest)
                kept.add(step)
        if len(kept) == keep:
            break
    return kept


def _delete_steps(store: Store, kept: set[StepId | None], generation: int) -> None:
    for step in saved_steps(store):
        if step not in kept and step.generation <= generation:
            store.delete(manifest_path(step))
            logger.info("deleted step %s of %s", step, store.uri)
