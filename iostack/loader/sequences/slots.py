"""Slots: memory for blocks of batches, filled again when nobody holds a batch that lies in it any more.

    free ──take()──> filled by sources ──> held by who has a batch of it, or a view ──the last lets go──> free

The consumer owns its batches: a slot is free only once every tensor over it is gone, views and ``.numpy()`` included, so that
no batch ever changes. On the way to a device the copies are the holders, until their events have passed. Memory that was
touched before costs no page faults: with malloc alone a batch of 8 x 2049 took 22 or 53 us, as its heap happened to lie. Who
holds more batches than slots are kept gets fresh memory for each block.
"""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from iostack.loader.device.copies import COPIES_AHEAD
from iostack.loader.sequences.buffers import Buffers, Columns, row_bytes

SLOTS, PINNED_SLOTS = 2, COPIES_AHEAD + 2
"""One is filled while the consumer holds a batch of the one before, or copies read from others."""


class Slots:
    """The slots of one loader: each holds up to ``num_batches`` batches of ``rows`` rows. Belongs to one thread.

    ``pinned`` ones can be copied to CUDA devices without waiting.
    """

    def __init__(self, num_batches: int, rows: int, columns: Columns, *, pinned: bool) -> None:
        self.num_batches = num_batches
        self._rows = rows
        self._columns = columns
        self._pinned = pinned
        self._most_kept = PINNED_SLOTS if pinned else SLOTS
        self._slots: list[_Slot] = []
        self.bytes = num_batches * rows * row_bytes(columns)
        """Of one slot."""

    def take(self, num_batches: int) -> Buffers:
        """Return memory for a block, not filled; it belongs to who holds its arrays, or tensors over them.

        Raises:
            MemoryError: there is no more.
        """
        slot = next((slot for slot in self._slots if slot.is_free), None)
        if slot is None:
            slot = _Slot(self.num_batches * self._rows, self._columns, pinned=self._pinned)
            self._slots = [*self._slots[1 - self._most_kept :], slot]
        return Buffers(num_batches, self._rows, slot.lend(num_batches * self._rows))

    def clear(self) -> None:
        """Let go of the memory; what is lent stays with its holders."""
        self._slots.clear()


class _Slot:
    """The memory of one block. What it lends are arrays of their own, which tensors over them keep alive."""

    def __init__(self, num_rows: int, columns: Columns, *, pinned: bool) -> None:
        self._memory = {
            name: _allocate((num_rows,) if column.width is None else (num_rows, column.width), column.dtype, pinned)
            for name, column in columns.items()
        }
        self._lent: list[weakref.ref[NDArray[Any]]] = []

    @property
    def is_free(self) -> bool:
        return all(lent() is None for lent in self._lent)

    def lend(self, num_rows: int) -> dict[str, NDArray[Any]]:
        arrays = {name: memory[:num_rows] for name, memory in self._memory.items()}
        self._lent = [weakref.ref(array) for array in arrays.values()]
        return arrays


def _allocate(shape: tuple[int, ...], dtype: type[np.generic], pinned: bool) -> NDArray[Any]:
    array = np.empty(shape, dtype)
    if not pinned:
        return array
    try:
        memory: NDArray[Any] = torch.empty(shape, dtype=torch.from_numpy(array).dtype, pin_memory=True).numpy()
    except RuntimeError as error:
        raise MemoryError(str(error)) from error
    return memory
