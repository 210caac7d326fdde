"""What happens to bad samples: each is replaced by another of its window, and both are reported."""

from __future__ import annotations

import logging
import threading

from iostack.errors import SubstitutionError

log = logging.getLogger("iostack.loader")


class BadSamples:
    """Counts and reports the bad samples of one loader; thread-safe. ``budget`` bounds how many a run may meet."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.count = 0
        self._lock = threading.Lock()

    def substituted(self, bad: str, error: Exception, substitute: str) -> None:
        """Report that ``substitute`` stands in for ``bad``; both name shard and row.

        Raises:
            SubstitutionError: the budget is exceeded.
        """
        with self._lock:
            self.count += 1
            count = self.count
        log.warning("bad sample %s (%s): %s appears in its place", bad, error, substitute)
        if count > self.budget:
            raise SubstitutionError(
                f"{count} bad samples, more than the budget of {self.budget}; the last one is {bad}: {error}",
                hint="repair the corpus, or raise max_bad_samples",
            ) from error

    def refuse_in_a_row(self, tried: int, bad: str, error: Exception) -> None:
        """Refuse to look further for a substitute of ``bad`` once as many were bad as the budget allows.

        Raises:
            SubstitutionError: before the ``tried``-th is read; so a transform that always fails is found out soon.
        """
        if tried > max(self.budget, 1):
            raise SubstitutionError(
                f"{tried} samples in a row are bad, from {bad} on; the first: {type(error).__name__}: {error}",
                hint="check the transforms and the corpus; max_bad_samples allows more",
            ) from error

    def nothing_left(self, where: str, error: Exception) -> SubstitutionError:
        """Return the error for a window in which no sample is good."""
        return SubstitutionError(
            f"every sample of {where} is bad; the first: {error}", hint="repair or remove the shard"
        )
