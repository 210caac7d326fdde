"""How much is loaded ahead: as many pieces of work as fit into bytes, by what such pieces were found to take."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from iostack.loader.metering.meter import Pending

_WEIGHT_OF_NEWEST = 1 / 8


class LookAhead:
    """The bound in bytes of one source, or of all whole samples. Thread-safe.

    ``guessed_bytes`` is what a piece takes while it is loaded, and, until one was measured, afterwards too. Where pieces lie
    in memory while they are used, ``counts_used`` says that these count too.
    """

    def __init__(self, most_bytes: int, guessed_bytes: float, *, counts_used: bool = False) -> None:
        self._most_bytes = most_bytes
        self._guessed_bytes = max(guessed_bytes, 1.0)
        self._measured_bytes: float | None = None
        self._counts_used = counts_used

    def measured(self, num_bytes: int) -> None:
        """Learn what a piece takes once it is loaded: more counts at once, less little by little."""
        before = self._measured_bytes if self._measured_bytes is not None else float(num_bytes)
        self._measured_bytes = max(float(num_bytes), before + (num_bytes - before) * _WEIGHT_OF_NEWEST)

    @property
    def piece_bytes(self) -> float:
        """What a piece takes once it is loaded, as far as is known."""
        return self._measured_bytes if self._measured_bytes is not None else self._guessed_bytes

    def has_room(self, pending: Collection[Pending[Any]], *, num_used: int = 0) -> bool:
        """Return whether one piece more may be loaded beside those ``pending`` and ``num_used`` others; one always may."""
        if not pending:
            return True
        loaded_bytes = self.piece_bytes
        loading_bytes = max(loaded_bytes, self._guessed_bytes)
        num_loading = sum(not each.is_done for each in pending)
        num_loaded = len(pending) - num_loading + (num_used if self._counts_used else 0)
        return (num_loading + 1) * loading_bytes + num_loaded * loaded_bytes <= self._most_bytes
