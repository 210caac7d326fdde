"""Bytes in flight: shards of all sources that are fetched, and those that were fetched ahead and nobody has read yet."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from iostack.forks import renew_in_children


class InFlight:
    """Counts the bytes in flight of one loader. Thread-safe.

    What is needed now is always fetched, and one shard of each source ahead; the more of that there is, the less is fetched
    ahead beside it: only what fits below ``most_bytes``.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._lock = threading.Lock()
        self.held_bytes = 0
        """How many there are now."""
        renew_in_children(self)

    def has_room(self, num_bytes: int) -> bool:
        """Return whether so many fit beside those there are."""
        return self.held_bytes + num_bytes <= self._most_bytes

    def hold(self, num_bytes: int) -> None:
        """Count so many more, or fewer."""
        with self._lock:
            self.held_bytes += num_bytes

    @contextmanager
    def holding(self, num_bytes: int) -> Iterator[None]:
        """Count so many more inside."""
        self.hold(num_bytes)
        try:
            yield
        finally:
            self.hold(-num_bytes)

    def renew_after_fork(self) -> None:
        """Renew the lock in a forked child."""
        self._lock = threading.Lock()
