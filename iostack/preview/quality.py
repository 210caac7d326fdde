"""How well the order shuffles, beside what a permutation of the whole corpus would give."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from iostack.loader.order.planned import LoaderPlan, PlannedSource
from iostack.plan.indexed import IndexedPlan

MOST_SAMPLES = 1_000_000


@dataclass(frozen=True)
class Quality:
    """One measure of one source: ``found`` in its order, and ``full`` of a permutation of all."""

    source: int
    name: str
    found: float
    full: float
    meaning: str


def measure(plan: LoaderPlan, batch_size: int) -> list[Quality]:
    """Return the measures of every source, over one epoch or its first million positions; opens no shard.

    Sources that walk through units are measured by their units, since only those are dealt by arithmetic.
    """
    return [quality for source in plan.sources for quality in _measure(source, plan.lanes, batch_size)]


def _measure(source: PlannedSource, lanes: int, batch_size: int) -> list[Quality]:
    order = plan_of(source, lanes)
    what = "units" if source.uses_units else "samples"
    number = min(order.num_samples, MOST_SAMPLES)
    rows = order.locate(np.arange(number, dtype=np.int64))
    first = np.concatenate([np.zeros(1, np.int64), np.cumsum(order.counts)])
    corpus_index = first[rows.shards] + rows.rows
    share = order.counts / order.num_samples
    same = float((share * (order.counts - 1) / max(order.num_samples - 1, 1)).sum())
    batches = rows.shards[: number // batch_size * batch_size].reshape(-1, batch_size)
    measures = [
        ("same shard, pairs in a batch", _pairs_of_one_shard(batches), same, f"pairs of {what} of a batch that share a shard"),
        ("correlation with the corpus", _correlation(np.arange(number), corpus_index), 0.0, "1: as stored, 0: none"),
        ("correlation of neighbours", _correlation(corpus_index[:-1], corpus_index[1:]), 0.0, "of positions one after another"),
        ("correlation in a lane", _correlation(corpus_index[:-lanes], corpus_index[lanes:]), 0.0, "of positions one lane apart"),
        ("distance of stored neighbours", _distance(corpus_index), 1 / 3, "of the epoch, between rows stored one after another"),
    ]  # fmt: skip
    return [Quality(source.number, name, round(found, 6), round(full, 6), told) for name, found, full, told in measures]


def plan_of(source: PlannedSource, lanes: int) -> IndexedPlan:
    """Return the arithmetic part of a source's order: that of its samples, or of its units."""
    return source.unit_plan(lanes).plan if source.uses_units else source.indexed_plan(lanes)


def _pairs_of_one_shard(batches: np.ndarray) -> float:
    """Return the share of all pairs of a batch whose two samples come from one shard."""
    num_batches, size = batches.shape
    if num_batches == 0 or size < 2:
        return 0.0
    ordered = np.sort(batches, axis=1)
    changes = np.concatenate([np.ones((num_batches, 1), np.bool_), np.diff(ordered, axis=1) != 0], axis=1)
    runs = np.diff(np.flatnonzero(np.append(changes.ravel(), True)))
    return float((runs * (runs - 1)).sum() / (num_batches * size * (size - 1)))


def _correlation(left: np.ndarray, right: np.ndarray) -> float:
    if len(left) < 2 or not left.std() or not right.std():
        return 0.0
    return float(np.corrcoef(left, right)[0, 1])


def _distance(corpus_index: np.ndarray) -> float:
    """Return how far apart rows that are stored one after another come in the stream, as a share of it, on average."""
    order = np.argsort(corpus_index, kind="stable")
    neighbours = np.diff(corpus_index[order]) == 1
    if not neighbours.any():
        return 0.0
    return float(np.abs(np.diff(order))[neighbours].mean() / len(corpus_index))
