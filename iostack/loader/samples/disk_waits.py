"""Whether reading mapped files waits for the disk: told by the page faults of the thread that reads."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager

_WHOSE = getattr(resource, "RUSAGE_THREAD", resource.RUSAGE_SELF)  # macOS counts for the process alone


class DiskWaits:
    """What the last batch met. Thread-safe: where batches are read at once, any of them may be the last."""

    def __init__(self) -> None:
        self.seen = False
        """Whether pages had to be read that were not in the page cache."""

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Learn from what is read inside, in this thread; 1 us."""
        before = resource.getrusage(_WHOSE).ru_majflt
        yield
        self.seen = resource.getrusage(_WHOSE).ru_majflt > before
