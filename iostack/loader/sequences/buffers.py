"""The memory of a block of batches of sequences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from iostack.loader.state import Cursors

if TYPE_CHECKING:  # worker processes import this, and start without torch
    import torch


class Column(NamedTuple):
    """What one row of a column holds: ``width`` values of ``dtype``, or a single one where it is None."""

    dtype: type[np.generic]
    width: int | None = None

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return np.dtype(self.dtype).itemsize * (1 if self.width is None else self.width)


Columns = Mapping[str, Column]
"""The columns of a batch of sequences, by name."""


def sequence_columns(seq_len: int, *, packed: bool) -> Columns:
    """Return the columns of batches of sequences; packed ones tell documents apart."""
    columns = {
        "tokens": Column(np.int64, seq_len + 1),
        "valid": Column(np.bool_),
        "sample_ids": Column(np.int64),
    }
    if packed:
        columns |= {"position_ids": Column(np.int32, seq_len), "loss_mask": Column(np.bool_, seq_len)}
    return columns


def row_bytes(columns: Columns) -> int:
    """Return the bytes of one row of all columns."""
    return sum(column.row_bytes for column in columns.values())


class Buffers:
    """The ``num_batches`` batches of a block; sources write into them by row.

    ``arrays`` holds, for each column, [num_batches * rows] or [num_batches * rows, width]; not filled, but for ``valid``.
    """

    def __init__(self, num_batches: int, rows: int, arrays: dict[str, NDArray[Any]]) -> None:
        self.rows = rows
        self.num_batches = num_batches
        self.arrays = arrays
        self.tokens: NDArray[np.int64] = self.arrays["tokens"]
        self.identities: NDArray[np.int64] = self.arrays["sample_ids"]
        self.valid: NDArray[np.bool_] = self.arrays["valid"]
        self.valid[:] = True
        self.cursors: list[Cursors] = [{} for _ in range(num_batches)]

    @property
    def bytes(self) -> int:
        """Bytes of all columns."""
        return sum(array.nbytes for array in self.arrays.values())

    def batches(self) -> list[dict[str, torch.Tensor]]:
        """Return the columns of each batch, as tensors over this memory."""
        import torch

        # Of the arrays themselves: a view of one would keep the memory of its slot, but not tell the slot so. Batches are no views
        # of one tensor to autograd: that takes half as long, and lets each be written to without the others knowing.
        names = tuple(self.arrays)
        sizes = [self.rows] * self.num_batches
        split = (torch.unsafe_split_with_sizes(torch.from_numpy(array), sizes) for array in self.arrays.values())
        return [dict(zip(names, tensors)) for tensors in zip(*split)]
