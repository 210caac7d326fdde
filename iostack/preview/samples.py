"""The samples of any steps, from the plan alone where counts tell the order; else units are read, from the start or a state.

Positions are located as a loader does it, with the same plans, but nothing is gathered, decoded or collated.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

import numpy as np

from iostack.loader.order.planned import LoaderPlan, PlannedSource
from iostack.loader.order.schedule import Draws
from iostack.loader.order.scheduling import make_schedule
from iostack.loader.order.token_counts import token_counts
from iostack.loader.sources import StreamedSource
from iostack.loader.state import Cursors
from iostack.loader.threads import Threads
from iostack.plan.identity import row_identities
from iostack.plan.sequences import sequence_starts
from iostack.plan.topology import Topology, own_lanes

_LOOKAHEAD_BYTES = 64 << 20
_THREADS = 2


@dataclass(frozen=True)
class PlannedSample:
    """One sample of a step: who gets it, and where it stands.

    ``row`` counts the sequences of a token shard, or its samples; ``token`` is the first token of a sequence in its shard.
    Text has ``unit_rows`` instead: the rows, first and last, of the unit whose documents it was made of.
    """

    step: int
    rank: int
    position: int
    source: int
    epoch: int
    shard: str
    row: int | None
    token: int | None
    unit_rows: tuple[int, int] | None
    sample_id: int

    def on_one_of(self, ranks: int) -> PlannedSample:
        """Return the same sample, and which of so many data ranks gets it."""
        return replace(self, rank=self.position % ranks)

    def as_json(self) -> dict[str, Any]:
        """Return the fields that are known."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class _Place:
    epoch: int
    shard: int
    row: int | None
    token: int | None
    unit_rows: tuple[int, int] | None
    sample_id: int


class Preview:
    """The samples that one rank will be given, in order. Steps must not go back where units are read; close it.

    ``cursors`` are those of a saved state: units are then read from there on.
    """

    def __init__(
        self, plan: LoaderPlan, topology: Topology, *, epochs: int | None = None, cursors: Cursors | None = None
    ) -> None:
        self.plan = plan
        self.topology = topology
        self._schedule = make_schedule(plan, topology, epochs)
        self._indexed = {
            source.number: source.indexed_plan(plan.lanes) for source in plan.sources if not source.uses_units
        }
        self._threads = Threads(_THREADS, "unit")
        self._streamed: dict[int, StreamedSource[Any]] = {}
        by_units = [source for source in plan.sources if source.uses_units]
        if by_units:
            self._streamed = _open_streams(plan, by_units, topology, epochs, self._threads)
        for source in self._streamed.values():
            source.restore(cursors or {}, 0)

    @property
    def end(self) -> int | None:
        """The first position from which all only pads, where arithmetic tells."""
        return self._schedule.end

    def step(self, number: int) -> list[PlannedSample]:
        """Return the samples of this rank in a step, counted from 1, in the order of their positions; padding is left out."""
        return self.at((number - 1) * self.topology.batch_size, step=number)

    def at(self, position: int, *, step: int) -> list[PlannedSample]:
        """Return the samples of this rank in the batch whose first position is ``position``."""
        block = self._schedule.block(position, 1)
        within = self._schedule.is_within(block.positions)
        found: list[PlannedSample | None] = [None] * len(block.positions)
        for source, draws in zip(self.plan.sources, block.draws, strict=True):
            for place, at in zip(draws.places.tolist(), self._places(source, draws), strict=True):
                if at is None or not within[place]:
                    continue
                found[place] = PlannedSample(
                    step=step,
                    rank=self.topology.rank,
                    position=int(block.positions[place]),
                    source=source.number,
                    epoch=at.epoch,
                    shard=source.corpus.manifest.path(at.shard),
                    row=at.row,
                    token=at.token,
                    unit_rows=at.unit_rows,
                    sample_id=at.sample_id,
                )
        return [sample for sample in found if sample is not None]

    def close(self) -> None:
        """Let go of the shards and threads of units."""
        self._threads.close()
        for source in self._streamed.values():
            source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _places(self, source: PlannedSource, draws: Draws) -> Iterator[_Place | None]:
        if source.number in self._streamed:
            return self._streamed_places(source, draws)
        return self._indexed_places(source, draws)

    def _indexed_places(self, source: PlannedSource, draws: Draws) -> Iterator[_Place | None]:
        rows = self._indexed[source.number].locate(draws.positions)
        identities = row_identities(source.number, rows.shards, rows.rows).tolist()
        starts: Sequence[int | None] = [None] * len(identities)
        if self.plan.seq_len is not None and source.packing == "none":
            tokens = token_counts(source.corpus)
            located = (rows.epochs, rows.shards, rows.rows)
            starts = sequence_starts(tokens, self.plan.seq_len, source.seed, *located).tolist()
        places = zip(rows.epochs.tolist(), rows.shards.tolist(), rows.rows.tolist(), starts, identities, strict=True)
        for epoch, shard, row, token, identity in places:
            yield _Place(epoch, shard, row, token, None, identity)

    def _streamed_places(self, source: PlannedSource, draws: Draws) -> Iterator[_Place | None]:
        for taken in self._streamed[source.number].take(draws):
            unit, output = taken.outputs.unit, taken.output
            if not taken.is_valid:
                yield None
            elif self.plan.seq_len is None:
                row = int(taken.outputs.order[output])
                shard = np.asarray([unit.shard])
                identity = int(row_identities(source.number, shard, np.asarray([row]))[0])
                yield _Place(unit.epoch, unit.shard, row, None, None, identity)
            else:
                held = unit.num_rows
                if held < 0:
                    held = source.corpus.open_shard(unit.shard).counts.samples
                rows = (unit.first_row, unit.first_row + held - 1)
                yield _Place(unit.epoch, unit.shard, None, None, rows, int(taken.outputs.identities[output]))


def all_ranks(previews: Sequence[Preview], number: int) -> list[PlannedSample]:
    """Return the samples of a step of all ranks, in the order of their positions."""
    samples = [sample for preview in previews for sample in preview.step(number)]
    return sorted(samples, key=lambda sample: sample.position)


def _open_streams(
    plan: LoaderPlan, sources: Sequence[PlannedSource], topology: Topology, epochs: int | None, threads: Threads
) -> dict[int, Any]:
    """Return the sources that walk through units, as a loader of this rank builds them; nothing is read yet."""
    from iostack.loader.ahead.in_flight import InFlight
    from iostack.loader.ahead.memory import memory_of
    from iostack.loader.building import build_source
    from iostack.loader.metering.meter import Meter
    from iostack.loader.reading import Reading
    from iostack.loader.transforming.bad_samples import BadSamples
    from iostack.loader.transforming.slow_samples import SlowSamples
    from iostack.loader.transforming.watch import KeepSlow

    reading = Reading(
        plan=plan,
        meter=Meter(None),
        own_lanes=own_lanes(topology, plan.lanes),
        bad_samples=BadSamples(budget=1 << 30),
        watch=KeepSlow(SlowSamples(plan.shard_name)),
        epochs=epochs,
        lookahead_bytes=_LOOKAHEAD_BYTES,
        memory=memory_of(None, None),
        pinned=False,
        threads=_THREADS,
        unit_threads=threads,
        in_flight=InFlight(_LOOKAHEAD_BYTES),
    )
    return {source.number: build_source(source, reading) for source in sources}
