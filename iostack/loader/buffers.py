"""The memory of a block of batches of sequences."""

from __future__ import annotations

import numpy as np

from iostack.loader.state import Cursors


class Buffers:
    """Fresh memory for the ``num_batches`` batches of a block; sources write into it by row."""

    def __init__(self, num_batches: int, rows: int, width: int) -> None:
        self.rows = rows
        self.num_batches = num_batches
        self.tokens = np.empty((num_batches * rows, width), np.int64)
        self.identities = np.empty(num_batches * rows, np.int64)
        self.valid = np.ones(num_batches * rows, np.bool_)
        self.cursors: list[Cursors] = [{} for _ in range(num_batches)]
