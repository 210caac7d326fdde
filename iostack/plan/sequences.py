"""Cutting token streams into sequences: a sequence never crosses shards, and every epoch cuts at another phase."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from iostack.plan.keyed import derive_key, keyed_hash

_PHASE = 3
Int64s = NDArray[np.int64]


def sequence_counts(tokens: Int64s, seq_len: int) -> Int64s:
    """Return the sequences of ``seq_len`` tokens, each with one token more as its last label, in shards of ``tokens``."""
    counts = tokens - 1
    np.maximum(counts, 0, out=counts)
    counts //= seq_len
    return counts


def sequence_starts(tokens: Int64s, seq_len: int, seed: int, epochs: Int64s, shards: Int64s, rows: Int64s) -> Int64s:
    """Return the first token of each (epoch, shard, row) in its shard; parallel int64 arrays.

    The phase is keyed by (epoch, shard), so the tail that is too short for a sequence rotates from epoch to epoch.
    """
    starts = rows * seq_len
    first = int(epochs[0]) if len(epochs) else 0
    if (epochs == first).all():
        return starts + _phases(tokens[shards], seq_len, seed, first, shards)
    for epoch in np.unique(epochs):
        chosen = epochs == epoch
        starts[chosen] += _phases(tokens[shards[chosen]], seq_len, seed, int(epoch), shards[chosen])
    return starts


def _phases(tokens: Int64s, seq_len: int, seed: int, epoch: int, shards: Int64s) -> Int64s:
    """Return where the first sequence of each of ``shards``, which hold ``tokens`` tokens, begins in an epoch."""
    num_phases = (tokens - 1) % seq_len + 1
    hashes = keyed_hash(derive_key(seed, _PHASE, epoch), shards.view(np.uint64))
    return (hashes % num_phases.view(np.uint64)).view(np.int64)


def unit_phase(tokens: int, seq_len: int, seed: int, epoch: int, unit: int) -> int:
    """Return where the first sequence of a unit that holds ``tokens`` tokens begins."""
    slack = (tokens - 1) % seq_len if tokens > 0 else 0
    return derive_key(seed, _PHASE, epoch, unit) % (slack + 1)
