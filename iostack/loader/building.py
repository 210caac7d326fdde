"""From a plan to the batches of a loader: which source reads each corpus, and who assembles what they read.

Only what a loader uses is imported: all of it takes as long as all else that comes before the first batch of tokens.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from iostack import logs
from iostack.loader.ahead.in_flight import InFlight
from iostack.loader.order.planned import LoaderPlan, PlannedSource
from iostack.loader.order.schedule import Schedule
from iostack.loader.reading import Reading
from iostack.loader.sequences.batches import SequenceBatches, SequenceSource, batches_planned
from iostack.loader.sequences.buffers import Columns, row_bytes, sequence_columns
from iostack.loader.sequences.slots import PINNED_SLOTS, SLOTS, Slots
from iostack.loader.sequences.tokens import TokenSource

if TYPE_CHECKING:
    from iostack.loader.samples.batches import SampleBatches
    from iostack.loader.samples.planner import SampleSource


log = logs.logger("iostack.loader")


def build_batches(reading: Reading, schedule: Schedule) -> SequenceBatches | SampleBatches:
    """Return what iterates over the batches of a loader; nothing is opened or started yet."""
    plan = reading.plan
    if reading.ends_by_data and plan.sources[0].num_units < plan.lanes:
        _warn_of_padding(plan.sources[0], plan.lanes)
    if plan.seq_len is not None:
        slots = _slots(sequence_columns(plan.seq_len, packed=plan.packing != "none"), reading, schedule)
        reading = _beside(slots.bytes * SLOTS, reading)
        sequences = [_sequence_source(source, reading) for source in plan.sources]
        return SequenceBatches(schedule, sequences, reading, slots)
    from iostack.loader.samples.batches import SampleBatches

    mean_batch_bytes = _mean_batch_bytes(plan, schedule)
    reading = _beside(mean_batch_bytes, reading)
    samples = [_sample_source(source, reading) for source in plan.sources]
    return SampleBatches(schedule, samples, reading, mean_batch_bytes=mean_batch_bytes)


def build_source(source: PlannedSource, reading: Reading) -> SequenceSource | SampleSource:
    """Return what reads one corpus of a loader; nothing is opened or started yet."""
    is_cut = reading.plan.seq_len is not None
    return _sequence_source(source, reading) if is_cut else _sample_source(source, reading)


def _slots(columns: Columns, reading: Reading, schedule: Schedule) -> Slots:
    rows = schedule.topology.rows
    num_slots = PINNED_SLOTS if reading.pinned else SLOTS
    num_batches = reading.memory.block_batches(rows * row_bytes(columns), slots=num_slots, pinned=reading.pinned)
    return Slots(min(num_batches, batches_planned(rows)), rows, columns, pinned=reading.pinned)


def _beside(blocks_bytes: int, reading: Reading) -> Reading:
    """Return what the sources read with: their look-ahead is as long as the memory beside the blocks allows."""
    wanted = reading.lookahead_bytes * len(reading.plan.sources)
    lookahead_bytes = reading.memory.lookahead_bytes(wanted, blocks_bytes)
    return replace(
        reading,
        lookahead_bytes=lookahead_bytes // len(reading.plan.sources),
        in_flight=InFlight(lookahead_bytes),
    )


def _sequence_source(source: PlannedSource, reading: Reading) -> SequenceSource:
    if source.kind == "text":
        from iostack.loader.sequences.text import TextSource

        return TextSource(source, reading)
    if source.packing == "split":
        from iostack.loader.sequences.documents import DocumentSource

        return DocumentSource(source, reading)
    if source.packing == "best_fit":
        from iostack.loader.sequences.fitted import FittedDocumentSource

        return FittedDocumentSource(source, reading)
    return TokenSource(source, reading)


def _sample_source(source: PlannedSource, reading: Reading) -> SampleSource:
    from iostack.loader.samples.row_sources import IndexedRows, StreamedRows

    return StreamedRows(source, reading) if source.uses_units else IndexedRows(source, reading)


def _mean_batch_bytes(plan: LoaderPlan, schedule: Schedule) -> int:
    total_bytes = sum(int(source.corpus.manifest.bytes.sum()) for source in plan.sources)
    total_samples = sum(abs(int(source.counts.sum())) for source in plan.sources)
    return schedule.topology.rows * total_bytes // total_samples


def _warn_of_padding(source: PlannedSource, lanes: int) -> None:
    uri = source.corpus.uri
    log.warning(
        "%s: a pass deals %d units of it to %d lanes, so most rows of its batches are padding%s",
        uri,
        source.num_units,
        lanes,
        "" if source.corpus.indexed else f"; iostack index {uri} counts its samples, which are then dealt one by one",
    )
