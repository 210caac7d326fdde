"""What a corpus will cost a cluster: bytes, disk and requests of each node, and the memory of the plan's tables."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from iostack.loader.order.planned import LoaderPlan, PlannedSource
from iostack.plan.indexed import IndexedPlan
from iostack.plan.topology import Topology, own_lanes
from iostack.preview.quality import plan_of

RANGE_BYTES = 8 << 20
"""Objects are read from the origin in ranges of so many bytes."""
_TABLE_BYTES, _SHARD_BYTES, _LIVE_EPOCHS = 4, 16, 3


@dataclass(frozen=True)
class Estimate:
    """Of one source in one epoch; bytes are those of shards as stored, ``largest`` and ``mean`` are over the nodes."""

    source: int
    corpus_bytes: int
    mean_node_bytes: int
    largest_node_bytes: int
    mean_node_requests: int
    live_bytes: int
    """Of the windows that all lanes are in at once, and a shard for each: what must be on the disks of all nodes together."""
    table_bytes: int
    """Of the plan's tables, in the memory of each rank."""


def estimate(plan: LoaderPlan, nodes: int) -> list[Estimate]:
    """Return the costs of each source on ``nodes`` nodes, each of which reads the shards of its own lanes; opens no shard."""
    return [_estimate(source, plan.lanes, nodes) for source in plan.sources]


def _estimate(source: PlannedSource, lanes: int, nodes: int) -> Estimate:
    order = plan_of(source, lanes)
    sizes = np.asarray(source.corpus.manifest.bytes)
    per_node = [_shards_of(order, own_lanes(Topology(nodes, node, nodes), lanes)) for node in range(nodes)]
    node_bytes = [int(sizes[shards].sum()) for shards in per_node]
    requests = [int((-(-sizes[shards] // RANGE_BYTES)).sum()) for shards in per_node]
    window = min(order.geometry.window, -(-order.num_samples // lanes))
    total = int(sizes.sum())
    live = lanes * (window * total / order.num_samples + total / max(len(sizes), 1))
    return Estimate(
        source=source.number,
        corpus_bytes=total,
        mean_node_bytes=sum(node_bytes) // nodes,
        largest_node_bytes=max(node_bytes),
        mean_node_requests=-(-sum(requests) // nodes),
        live_bytes=min(total, int(live)),
        table_bytes=lanes * window * _TABLE_BYTES + len(sizes) * _SHARD_BYTES * _LIVE_EPOCHS,
    )


def _shards_of(order: IndexedPlan, lanes: list[int]) -> np.ndarray:
    """Return the shards that some lanes read in epoch 0, where lane l reads segment l."""
    axis = order.shard_order(0)
    needed = np.zeros(len(axis.shards), np.bool_)
    for lane in lanes:
        start, stop = order.geometry.segment_bounds(lane)
        if start < stop:
            first = int(np.searchsorted(axis.starts, start, side="right")) - 1
            needed[first : int(np.searchsorted(axis.starts, stop, side="left"))] = True
    needed &= order.counts[axis.shards] > 0
    return axis.shards[needed]
