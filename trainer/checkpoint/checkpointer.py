"""Saves and loads the steps of a training run. One save, as all ranks go through it:

    tensors, state
      |  planned     every rank knows which pieces it writes (torch's planner; cached while the layout stays)
      |  compared    what several ranks hold has the same bytes on all of them
      |  written     each rank: safetensors files, fsync, then its rank file      steps/<step>.<generation>-<attempt>/
      |  committed   one rank: the index, then the manifest, created conditionally       manifests/<step>.<generation>.json
      v  collected   manifests of older steps beyond `keep` are deleted; their data goes at the next save or start

A process that dies before ``committed`` leaves a folder that no manifest names: the step before stays the newest. A rank
that fails makes all ranks raise the same CheckpointError, and what the attempt wrote is deleted.

A run that starts takes the next generation, and only the newest generation commits: a forgotten older process that is
still alive finds itself superseded.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist

from iostack import logs
from iostack.errors import BrokenStepError, CheckpointError
from trainer.checkpoint.documents import JSON, ManifestFile, encode, seal, unseal
from trainer.checkpoint.exchange import Exchange
from trainer.checkpoint.generation import begin_generation, check_newest
from trainer.checkpoint.layout import LATEST, Attempt, StepId
from trainer.checkpoint.lineage import lineage
from trainer.checkpoint.manifest import check_complete, commit, open_index, read_index_file, read_manifest, read_rank
from trainer.checkpoint.reader import fill
from trainer.checkpoint.retention import collect, collect_orphans, delete_attempt
from trainer.checkpoint.save_plan import SavePlanner
from trainer.checkpoint.store import Store, locate, open_store
from trainer.checkpoint.writer import write_rank

logger = logs.logger(__name__)

State = Mapping[str, JSON]


@dataclass(frozen=True)
class SaveReport:
    """A committed step: the bytes of its tensors' files over all ranks, and the seconds that ``save`` took here."""

    step: int
    bytes: int
    seconds: float


@dataclass(frozen=True)
class StepInfo:
    """A saved step; ``world`` is the number of ranks that wrote it, ``bytes`` the size of its tensors' files."""

    step: int
    generation: int
    world: int
    bytes: int
    settings: State
    state: State


@dataclass(frozen=True)
class Restored:
    """What ``load`` restored. ``skipped`` says of each newer step that was passed over what is wrong with it.

    ``rank_state`` is what this rank gave to ``save``, None if the step was written by another number of ranks.
    """

    step: int
    generation: int
    state: State
    settings: State
    rank_state: State | None = None
    skipped: list[str] = field(default_factory=list)


class Checkpointer:
    """The checkpoints of one run at a path or URI; every method is a collective of the ranks of ``group``.

    ``group`` None means all ranks, or this process alone where torch.distributed is not initialised; the checkpointer
    makes a gloo group of its own. ``keep`` is how many complete steps stay, 0 for all; the step that a run was restored
    from stays besides. ``timeout_s`` bounds the wait for another rank. Not for use from several threads.
    """

    def __init__(
        self,
        uri: str,
        *,
        group: dist.ProcessGroup | None = None,
        storage_options: Mapping[str, Any] | None = None,
        keep: int = 3,
        timeout_s: float = 1800.0,
    ) -> None:
        self.generation: int | None = None
        self._store: Store = open_store(uri, storage_options or {})
        self._exchange = Exchange(group, timeout_s=timeout_s)
        self._planner = SavePlanner(self._exchange)
        self._keep = keep
        self._parent: StepId | None = None
        self._verified: StepId | None = None
        self._num_attempts = 0

    def begin(self, run: State) -> int:
        """Take the next generation, and return it; before the first ``save``.

        ``run`` is what makes this run this run: where it differs from what the first start wrote, the CheckpointError
        names the field.
        """

        def begin_first() -> bytes:
            generation = begin_generation(self._store, run, world=self._exchange.world)
            collect_orphans(self._store, generation=generation)
            return str(generation).encode()

        self.generation = int(self._exchange.run_on_first(f"cannot start in {self._store.uri}", begin_first))
        return self.generation

    def save(
        self,
        step: int,
        tensors: Mapping[str, torch.Tensor],
        state: State,
        *,
        settings: State,
        rank_state: State | None = None,
    ) -> SaveReport:
        """Save a step; when this returns on any rank, the step is durable and complete.

        ``tensors`` maps fully qualified names to tensors: DTensors, plain ones that are equal on all ranks that have
        the name, and names that only some ranks have. ``state`` and ``settings`` are rank 0's. ``rank_state`` is this
        rank's own and comes back only on the same number of ranks.
        """
        started = time.monotonic()
        exchange, store, parent = self._exchange, self._store, self._parent
        doing = f"step {step} was not saved"
        attempt = self._open_attempt(step, doing)
        if exchange.rank == 0:
            collect_orphans(store, generation=attempt.id.generation)
        plan = self._planner.plan(tensors, doing)
        self._planner.check_equal(plan, tensors, doing)

        def write() -> int:
            try:
                return write_rank(
                    store,
                    attempt,
                    plan.pieces,
                    tensors,
                    rank=exchange.rank,
                    world=exchange.world,
                    parent=parent,
                    state=state,
                    settings=settings,
                    rank_state=rank_state,
                )
            except FileNotFoundError:
                check_newest(store, attempt.id.generation)  # a newer start deletes what older ones had not finished
                raise

        try:
            exchange.run(doing, write)
            num_bytes = int(exchange.run_on_first(doing, lambda: str(self._commit(attempt)).encode()))
        except CheckpointError:
            if exchange.rank == 0:
                delete_attempt(store, attempt)
            raise
        self._parent = attempt.id
        if exchange.rank == 0:
            collect(store, generation=attempt.id.generation, keep=self._keep, verified=self._verified)
        return SaveReport(step, num_bytes, time.monotonic() - started)

    def latest(self) -> StepInfo | None:
        """Return the newest step of the newest lineage whose files are all there, None if there is none."""

        def find() -> bytes:
            for step, manifest in lineage(self._store):
                try:
                    if isinstance(manifest, BrokenStepError):
                        raise manifest
                    check_complete(self._store, manifest)
                    return seal(manifest)
                except BrokenStepError as error:
                    logger.warning("step %s is passed over: %s", step, error)
            return b""

        data = self._exchange.run_on_first(f"cannot list the steps in {self._store.uri}", find)
        if not data:
            return None
        manifest = unseal(ManifestFile, data, what="the newest manifest")
        return StepInfo(
            step=manifest.step,
            generation=manifest.generation,
            world=manifest.world,
            bytes=sum(manifest.files.bytes),
            settings=manifest.settings,
            state=manifest.state,
        )

    def load(self, tensors: Mapping[str, torch.Tensor]) -> Restored | None:
        """Fill ``tensors`` in place from the newest step that is whole, and return what else it holds.

        The tensors may lie on other ranks and meshes than those that were saved. A step that cannot be used is passed
        over by all ranks with a warning. Returns None where no step was ever saved; raises CheckpointError where none
        of them can be used (``tensors`` may be partly filled by then), or where the store does not answer.
        """
        steps = lineage(self._store) if self._exchange.rank == 0 else iter(())
        skipped: list[str] = []
        while True:
            data = self._exchange.run_on_first(f"cannot list the steps in {self._store.uri}", lambda: _next(steps))
            candidate = json.loads(data)
            if candidate is None:
                break
            step = StepId(step=candidate[0], generation=candidate[1])
            try:
                manifest, rank_state = self._load_step(step, tensors)
            except BrokenStepError as error:
                skipped.append(error.message)
                if self._exchange.rank == 0:
                    logger.warning("%s; the step before it is used", error.message)
                continue
            self._parent = self._verified = step
            return Restored(step.step, step.generation, manifest.state, manifest.settings, rank_state, skipped)
        if not skipped:
            return None
        raise CheckpointError(
            f"none of the {len(skipped)} steps in {self._store.uri} can be used: {skipped[0]}",
            hint="restore the files from a copy, or start the run in a new folder",
        )

    def close(self) -> None:
        """Leave the group that the checkpointer made; the last call, on all ranks."""
        self._exchange.close()

    def _open_attempt(self, step: int, doing: str) -> Attempt:
        if self.generation is None:
            raise CheckpointError(f"{doing}: begin() was not called")
        steps = self._exchange.gather(step)
        if len(set(steps)) > 1:
            raise CheckpointError(f"nothing was saved: the ranks are at different steps: {steps}")
        attempt = Attempt(StepId(step=step, generation=self.generation), self._num_attempts)
        self._num_attempts += 1

        def check() -> None:
            if self._parent is not None and self._parent.generation == self.generation and step <= self._parent.step:
                raise CheckpointError(
                    f"this start of the run has saved step {self._parent.step} already",
                    hint="save steps in ascending order; call begin() to go back",
                )
            if self._exchange.rank == 0:
                check_newest(self._store, attempt.id.generation)

        self._exchange.run(doing, check)
        return attempt

    def _commit(self, attempt: Attempt) -> int:
        check_newest(self._store, attempt.id.generation)
        manifest = commit(self._store, attempt, world=self._exchange.world)
        try:
            self._store.put(LATEST, encode({"step": attempt.id.step, "generation": attempt.id.generation}))
        except OSError as error:
            logger.warning("%s could not be written: %s", locate(self._store, LATEST), error)
        return sum(manifest.files.bytes)

    def _load_step(self, step: StepId, tensors: Mapping[str, torch.Tensor]) -> tuple[ManifestFile, State | None]:
        exchange, store = self._exchange, self._store
        doing = f"step {step} in {store.uri} cannot be used"
        found: list[ManifestFile] = []

        def read_first() -> bytes:
            found.append(read_manifest(store, step))
            check_complete(store, found[0])
            return seal(found[0])

        manifest = unseal(ManifestFile, exchange.run_on_first(doing, read_first), what=doing)
        packed = exchange.run_on_first(doing, lambda: read_index_file(store, manifest))

        def read_own() -> tuple[State | None, str]:
            index = open_index(store, manifest, packed)
            fill(store, manifest, index, tensors)
            used = sum(1 << row for row, name in enumerate(index.tensors.names) if name in tensors)
            same_world = manifest.world == exchange.world
            return read_rank(store, manifest, exchange.rank).rank_state if same_world else None, hex(used)

        rank_state, used = exchange.run(doing, read_own)
        self._report_unused(step, packed, manifest, exchange.gather(used))
        return manifest, rank_state

    def _report_unused(self, step: StepId, packed: bytes, manifest: ManifestFile, used: list[str]) -> None:
        """Warn of tensors of the step that no rank asked for: a model that lost a layer would load in silence."""
        if self._exchange.rank:
            return
        together = 0
        for mask in used:
            together |= int(mask, 16)
        names = open_index(self._store, manifest, packed).tensors.names
        unused = [name for row, name in enumerate(names) if not together >> row & 1]
        if unused:
            logger.warning("step %s holds %d tensors that nothing asked for: %s ...", step, len(unused), unused[0])


def _next(steps: Iterator[tuple[StepId, object]]) -> bytes:
    step = next(steps, None)
    return json.dumps(step and (step[0].step, step[0].generation)).encode()
