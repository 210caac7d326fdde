"""Slots: anonymous memory that a worker writes its results to, and its parent reads them from.

    request: parent ──write──> slot ──read──> worker        result: worker ──write──> slot ──read──> parent

Both sides use ``read`` and ``write`` and neither maps it: the kernel copies once on each side at the speed of memory, a
slot grows by being written to, a full memory is an error instead of a SIGBUS, and the parent's copy is fresh memory that
belongs to the consumer. A slot has no name, so it goes with its last descriptor, whoever is killed.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

SMALL_BYTES = 1 << 18
"""What is no larger goes through the kernel at once: most messages are ten arrays of 100 bytes each."""
_KEPT_BYTES = 64 << 20
"""A slot that a single batch made larger gives its memory back."""


def anonymous_memory() -> int:
    """Return the descriptor of new memory without a name, which closes on exec unless it is passed on."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("iostack", os.MFD_CLOEXEC)
    with tempfile.TemporaryFile() as file:  # already unlinked
        return os.dup(file.fileno())


class Slot:
    """One slot, by its descriptor, which it owns. Belongs to one side at a time, as the messages say."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def write(self, parts: Sequence[bytes | memoryview]) -> None:
        """Write the parts, which are bytes, one after another from the start on.

        Raises:
            OSError: there is no memory.
        """
        if sum(map(len, parts)) <= SMALL_BYTES:
            parts = [b"".join(parts)]
        position = 0
        for part in parts:
            view, end = memoryview(part), position + len(part)
            while position < end:
                position += os.pwrite(self.descriptor, view[position - end :], position)

    def read(self, start: int, num_bytes: int) -> NDArray[np.uint8]:
        """Return a copy of a part of the slot.

        Raises:
            EOFError: it holds less.
        """
        if not 0 <= start <= start + num_bytes <= os.fstat(self.descriptor).st_size:
            raise EOFError(f"bytes {start} to {start + num_bytes} of a slot of {os.fstat(self.descriptor).st_size}")
        data = np.empty(num_bytes, np.uint8)
        view, done = data.data, 0
        while done < num_bytes:
            done += os.preadv(self.descriptor, [view[done:]], start + done)
        return data

    def shrink(self) -> None:
        """Give memory back that only an unusual result took."""
        if os.fstat(self.descriptor).st_size > _KEPT_BYTES:
            os.ftruncate(self.descriptor, 0)

    def close(self) -> None:
        """Let go of the memory."""
        os.close(self.descriptor)
