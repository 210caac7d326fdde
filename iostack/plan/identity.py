"""Identities of samples as 64-bit hashes: the same for a sample wherever, whenever and in whatever batch it is read."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from iostack.plan.keyed import derive_key, keyed_hash

_IDENTITY = 4
Int64s = NDArray[np.int64]


def row_identities(source: int, shards: Int64s, rows: Int64s) -> Int64s:
    """Return the identities of rows of shards of a source; int64, any value."""
    key = derive_key(_IDENTITY, source)
    return keyed_hash(key, keyed_hash(key, shards.astype(np.uint64)) + rows.astype(np.uint64)).view(np.int64)


def unit_identities(source: int, unit: int, num_outputs: int) -> Int64s:
    """Return the identities of the outputs of one unit, in order; int64, any value."""
    key = derive_key(_IDENTITY, source, unit)
    return keyed_hash(key, np.arange(num_outputs, dtype=np.uint64)).view(np.int64)
