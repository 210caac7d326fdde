"""Batches of whole samples: planned by the consumer, read and decoded by threads ahead of it, handed out in order."""

from __future__ import annotations

import time as clock
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import torch

from iostack.corpus.contracts import Sample
from iostack.errors import UsageError
from iostack.loader.bad_samples import BadSamples
from iostack.loader.device import LoadedBatch
from iostack.loader.planning import LoaderPlan, PlannedSource
from iostack.loader.residency import Residency
from iostack.loader.rows import (
    RowReader,
    RowUnit,
    collate,
    load_row_unit,
    substitutes_by_plan,
    substitutes_by_unit,
)
from iostack.loader.schedule import Draws, Int64s, Schedule
from iostack.loader.state import Cursors
from iostack.loader.streams import UnitSource
from iostack.loader.threads import Threads, patience_s, wait_for
from iostack.loader.tokens import locate
from iostack.plan.indexed import Rows

_LEAST_AHEAD, _MOST_AHEAD = 2, 32


@dataclass(frozen=True)
class Part:
    """What one source reads for one batch: ``read()`` gives samples and identities for ``places``.

    ``shard_bytes`` are those of all shards that it reads.
    """

    places: Int64s
    shard_bytes: int
    read: Callable[[], tuple[list[Sample], Int64s]]


class SampleSource(Protocol):
    """Plans the rows that one source gives to a batch."""

    def plan(self, draws: Draws, valid: np.ndarray, cursors: Cursors) -> Part: ...
    def restore(self, cursors: Cursors, first_lane: int) -> None: ...
    def is_finished(self) -> bool: ...
    def wait_s(self) -> dict[str, float]: ...
    def stop(self) -> None: ...
    def close(self) -> None: ...


class IndexedRows:
    """One corpus whose counts are known: rows by arithmetic."""

    def __init__(
        self, source: PlannedSource, plan: LoaderPlan, bad_samples: BadSamples, *, lookahead_bytes: int
    ) -> None:
        self._plan = source.indexed_plan(plan.lanes)
        self._residency = Residency(source.corpus, lookahead_bytes)
        self._reader = RowReader(self._residency, source.transforms, bad_samples, source.number)

    def plan(self, draws: Draws, valid: np.ndarray, cursors: Cursors) -> Part:
        """Return the part of one batch; nothing is read yet."""
        located = locate(self._plan, self._residency, draws)
        read = partial(
            self._reader.read, located, valid[draws.places], substitutes_by_plan(self._plan, draws.positions)
        )
        return Part(draws.places, _shard_bytes(self._residency, located), read)

    def restore(self, cursors: Cursors, first_lane: int) -> None:
        """Do nothing: the order is arithmetic."""

    def is_finished(self) -> bool:
        """Return True: the number of steps says when the pass ends."""
        return True

    def wait_s(self) -> dict[str, float]:
        """Return nothing: threads wait for the bytes, and who waits for them counts it as decoding."""
        return {}

    def stop(self) -> None:
        """Stop fetching."""
        self._residency.stop()

    def close(self) -> None:
        """Stop, and let go of the open shards."""
        self._residency.close()


class UnindexedRows:
    """One corpus whose counts are not known: lanes deal whole shards, rows are permuted within each."""

    def __init__(
        self,
        source: PlannedSource,
        plan: LoaderPlan,
        own_lanes: Sequence[int],
        bad_samples: BadSamples,
        *,
        epochs: int | None,
        lookahead_bytes: int,
        threads: int,
    ) -> None:
        self._number = source.number
        self._lanes = plan.lanes
        self._residency = Residency(source.corpus, lookahead_bytes)
        self._reader = RowReader(self._residency, source.transforms, bad_samples, source.number)
        self._units: UnitSource[RowUnit] = UnitSource(
            source.unit_plan(plan.lanes),
            partial(load_row_unit, self._residency, seed=source.seed),
            corpus=source.corpus,
            own_lanes=own_lanes,
            epochs=epochs,
            lookahead_units=max(1, int(lookahead_bytes // max(source.unit_bytes, 1))),
            threads=threads,
            what_is_missing=lambda: f"{source.corpus.uri} holds no samples: all its shards are empty",
        )

    def plan(self, draws: Draws, valid: np.ndarray, cursors: Cursors) -> Part:
        """Return the part of one batch; waits until the shards are open, reads no sample yet."""
        chosen: list[tuple[RowUnit, int]] = []
        times, lanes = np.divmod(draws.positions, self._lanes)
        for place, lane, time in zip(draws.places.tolist(), lanes.tolist(), times.tolist(), strict=True):
            stream = self._units.stream(lane)
            unit, output, valid[place] = stream.take(time)
            chosen.append((unit, output))
            cursors.setdefault(self._number, {})[lane] = stream.cursor
        located = Rows(
            epochs=np.asarray([unit.unit.epoch for unit, _ in chosen], np.int64),
            shards=np.asarray([unit.unit.shard for unit, _ in chosen], np.int64),
            rows=np.asarray([unit.order[output] for unit, output in chosen], np.int64),
        )
        read = partial(self._reader.read, located, valid[draws.places], substitutes_by_unit(chosen))
        return Part(draws.places, _shard_bytes(self._residency, located), read)

    def restore(self, cursors: Cursors, first_lane: int) -> None:
        """Put the lanes where the cursors say and begin loading from ``first_lane`` on."""
        self._units.restore(cursors.get(self._number, {}), first_lane)

    def is_finished(self) -> bool:
        """Return whether the finite pass is over on this rank."""
        return self._units.is_finished()

    def wait_s(self) -> dict[str, float]:
        """Return the seconds waited, by stage."""
        return {"decode": self._units.wait_s}

    def stop(self) -> None:
        """Stop loading and drop what was loaded ahead."""
        self._units.stop()

    def close(self) -> None:
        """Stop, and let go of the open shards."""
        self.stop()
        self._residency.close()


def _shard_bytes(residency: Residency, located: Rows) -> int:
    return int(residency.corpus.manifest.bytes[np.unique(located.shards)].sum())


@dataclass(frozen=True)
class Work:
    """One batch to be read: ``run()`` reads it; ``first_position`` names it, ``deadline_s`` is how long that may take."""

    first_position: int
    deadline_s: float
    run: Callable[[], LoadedBatch]


class SampleBatches:
    """All batches of a loader of whole samples, in order, from any position on."""

    def __init__(
        self,
        schedule: Schedule,
        sources: Sequence[SampleSource],
        *,
        ends_by_data: bool,
        mean_batch_bytes: int,
        lookahead_bytes: int,
        threads: int,
    ) -> None:
        self._schedule = schedule
        self._sources = sources
        self._ends_by_data = ends_by_data
        self._threads = Threads(threads, "decode")
        self._ahead = max(_LEAST_AHEAD, min(_MOST_AHEAD, lookahead_bytes // max(mean_batch_bytes, 1)))
        self._decode_wait_s = 0.0

    def batches(self, position: int, end: int | None, cursors: Cursors) -> Generator[LoadedBatch, None, None]:
        """Yield the batches from ``position`` on; ``end`` is the first position that is only padding, if known.

        No thread runs when it is closed.
        """
        try:
            for source in self._sources:
                source.restore(cursors, position % self._schedule.lanes)
            yield from self._read_ahead(self._planned(position, end))
        finally:
            self._threads.close()
            for source in self._sources:
                source.stop()

    def _read_ahead(self, planned: Iterator[Work]) -> Iterator[LoadedBatch]:
        pending: deque[tuple[Work, Future[LoadedBatch]]] = deque()
        while True:
            while len(pending) < self._ahead and (work := next(planned, None)) is not None:
                pending.append((work, self._threads.submit(work.run)))
            if not pending:
                return
            work, future = pending.popleft()
            started = clock.perf_counter()
            awaited = partial("the batch at position {}".format, work.first_position)
            batch = wait_for(future, deadline_s=work.deadline_s, awaited=awaited)
            self._decode_wait_s += clock.perf_counter() - started
            yield batch

    def _planned(self, position: int, end: int | None) -> Iterator[Work]:
        topology = self._schedule.topology
        held_back: list[Work] = []
        while end is None or position < end:
            block = self._schedule.block(position, 1)
            valid = np.ones(topology.rows, np.bool_) if end is None else block.positions < end
            cursors: Cursors = {}
            parts = [
                source.plan(draws, valid, cursors)
                for source, draws in zip(self._sources, block.draws)
                if len(draws.places)
            ]
            deadline_s = patience_s(sum(part.shard_bytes for part in parts))
            run = partial(self._assemble, parts, valid, position + topology.batch_size, cursors)
            work = Work(position, deadline_s, run)
            position += topology.batch_size
            if not self._ends_by_data:
                yield work
                continue
            # A batch of only padding counts only if a valid one follows it.
            held_back.append(work)
            if valid.any():
                yield from held_back
                held_back.clear()
            if all(source.is_finished() for source in self._sources):
                return

    def _assemble(self, parts: Sequence[Part], valid: np.ndarray, next_position: int, cursors: Cursors) -> LoadedBatch:
        samples: list[Sample] = [{} for _ in range(len(valid))]
        identities = np.zeros(len(valid), np.int64)
        for part in parts:
            read, identities[part.places] = part.read()
            for place, sample in zip(part.places.tolist(), read):
                samples[place] = sample
        identities[~valid] = 0
        columns = collate(samples)
        if taken := sorted({"valid", "sample_ids"} & columns.keys()):
            raise UsageError(
                f"the samples have a column {taken[0]!r}, which the loader gives itself",
                hint="rename it with the transform 'rename'",
            )
        columns |= {"valid": torch.from_numpy(valid), "sample_ids": torch.from_numpy(identities)}
        return LoadedBatch(columns, next_position, cursors)

    def wait_s(self) -> dict[str, float]:
        """Return the seconds waited so far, by stage."""
        total = {"decode": self._decode_wait_s}
        for source in self._sources:
            for stage, seconds in source.wait_s().items():
                total[stage] = total.get(stage, 0.0) + seconds
        return total

    def close(self) -> None:
        """Let go of the open shards; ``batches`` must be closed."""
        for source in self._sources:
            source.close()
