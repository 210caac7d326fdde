"""Batches of whole samples: planned by the consumer, read and decoded by threads ahead of it, handed out in order."""

from __future__ import annotations

import time as clock
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import torch

from iostack.corpus.contracts import Sample
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
from iostack.loader.tokens import locate
from iostack.plan.indexed import Rows

_LEAST_AHEAD, _MOST_AHEAD = 2, 32


@dataclass(frozen=True)
class Part:
    """What one source reads for one batch: ``read()`` gives samples and identities for ``places``."""

    places: Int64s
    read: Callable[[], tuple[list[Sample], Int64s]]


class SampleSource(Protocol):
    """Plans the rows that one source gives to a batch."""

    def plan(self, draws: Draws, valid: np.ndarray, cursors: Cursors) -> Part: ...
    def restore(self, cursors: Cursors, first_lane: int) -> None: ...
    def is_finished(self) -> bool: ...
    def wait_s(self) -> dict[str, float]: ...
    def close(self) -> None: ...


class IndexedRows:
    """One corpus whose counts are known: rows by arithmetic."""

    def __init__(
        self, source: PlannedSource, plan: LoaderPlan, bad_samples: BadSamples, *, lookahead_bytes: int
    ) -> None:
        self._plan = source.indexed_plan(plan.seed, plan.lanes)
        self._residency = Residency(source.corpus, lookahead_bytes)
        self._reader = RowReader(self._residency, source.transforms, bad_samples, source.number)

    def plan(self, draws: Draws, valid: np.ndarray, cursors: Cursors) -> Part:
        """Return the part of one batch; nothing is read yet."""
        located = locate(self._plan, self._residency, draws)
        read = partial(self._reader.read, located, substitutes_by_plan(self._plan, draws.positions))
        return Part(draws.places, read)

    def restore(self, cursors: Cursors, first_lane: int) -> None:
        """Do nothing: the order is arithmetic."""

    def is_finished(self) -> bool:
        """Return True: the number of steps says when the pass ends."""
        return True

    def wait_s(self) -> dict[str, float]:
        """Return the seconds waited, by stage."""
        return {"origin": self._residency.wait_s}

    def close(self) -> None:
        """Stop fetching."""
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
        mean_shard_bytes = int(source.corpus.manifest.bytes.sum()) // source.num_units
        self._units: UnitSource[RowUnit] = UnitSource(
            source.unit_plan(plan.seed, plan.lanes),
            partial(load_row_unit, self._residency, seed=plan.seed),
            own_lanes=own_lanes,
            epochs=epochs,
            lookahead_units=max(threads, lookahead_bytes // max(mean_shard_bytes, 1)),
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
        return Part(draws.places, partial(self._reader.read, located, substitutes_by_unit(chosen)))

    def restore(self, cursors: Cursors, first_lane: int) -> None:
        """Put the lanes where the cursors say and begin loading from ``first_lane`` on."""
        self._units.restore(cursors.get(self._number, {}))
        self._units.start(first_lane)

    def is_finished(self) -> bool:
        """Return whether the finite pass is over on this rank."""
        return self._units.is_finished()

    def wait_s(self) -> dict[str, float]:
        """Return the seconds waited, by stage."""
        return {"decode": self._units.wait_s}

    def close(self) -> None:
        """Stop loading."""
        self._units.close()
        self._residency.close()


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
        self._threads = threads
        self._ahead = max(_LEAST_AHEAD, min(_MOST_AHEAD, lookahead_bytes // max(mean_batch_bytes, 1)))
        self._decode_wait_s = 0.0

    def batches(self, position: int, end: int | None, cursors: Cursors) -> Iterator[LoadedBatch]:
        """Yield the batches from ``position`` on; ``end`` is the first position that is only padding, if known."""
        for source in self._sources:
            source.restore(cursors, position % self._schedule.lanes)
        pending: deque[Future[LoadedBatch]] = deque()
        pool = ThreadPoolExecutor(self._threads, thread_name_prefix="iostack-decode")
        planned = self._planned(position, end)
        try:
            while True:
                while len(pending) < self._ahead and (work := next(planned, None)) is not None:
                    pending.append(pool.submit(work))
                if not pending:
                    return
                started = clock.perf_counter()
                batch = pending.popleft().result()
                self._decode_wait_s += clock.perf_counter() - started
                yield batch
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _planned(self, position: int, end: int | None) -> Iterator[Callable[[], LoadedBatch]]:
        topology = self._schedule.topology
        held_back: list[Callable[[], LoadedBatch]] = []
        while end is None or position < end:
            block = self._schedule.block(position, 1)
            valid = np.ones(topology.rows, np.bool_) if end is None else block.positions < end
            cursors: Cursors = {}
            parts = [
                source.plan(draws, valid, cursors)
                for source, draws in zip(self._sources, block.draws)
                if len(draws.places)
            ]
            position += topology.batch_size
            work = partial(self._assemble, parts, valid, position, cursors)
            if not self._ends_by_data:
                yield work
                continue
            # A batch of only padding counts only if a valid one follows it.
            held_back.append(work)
            if valid.any():
                yield from held_back
                held_back.clear()
            elif all(source.is_finished() for source in self._sources):
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
        """Stop all that runs ahead."""
        for source in self._sources:
            source.close()
