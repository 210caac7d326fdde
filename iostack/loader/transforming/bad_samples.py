"""What happens to bad samples: each is replaced by another of its window, or of its unit of text, and both are reported."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from iostack import logs
from iostack.errors import SubstitutionError

log = logs.logger("iostack.loader")


class BadSamples:
    """Counts and reports the bad samples of one loader, each once; thread-safe.

    ``budget`` bounds how many different ones a run may meet: one that comes again in every epoch is one.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self._known: dict[str, int] = {}
        self._lock = threading.Lock()

    @property
    def count(self) -> int:
        """How many different bad samples were met."""
        return len(self._known)

    def substituted(self, bad: str, error: Exception, substitute: str) -> None:
        """Report that ``substitute`` stands in for ``bad``; both name shard and row.

        Raises:
            SubstitutionError: the budget is exceeded.
        """
        count, are_new = self._add([bad])
        if are_new:
            log.warning("bad sample %s (%s): %s appears in its place", bad, words_of(error), substitute)
        self._refuse_too_many(count, bad, error)

    def dropped(self, unit: str, bad: Sequence[str], error: Exception) -> None:
        """Report that no sample of ``unit`` is good, and nothing appears in its place; ``error`` is that of the first.

        Raises:
            SubstitutionError: the budget is exceeded.
        """
        count, are_new = self._add(bad)
        if are_new:
            log.warning("every sample of %s is bad (%s): nothing appears in its place", unit, words_of(error))
        self._refuse_too_many(count, bad[0], error)

    def left_out(self, bad: str, error: Exception) -> None:
        """Report that nothing stands in for ``bad``, of which filters could not tell whether it is kept.

        Raises:
            SubstitutionError: the budget is exceeded.
        """
        count, are_new = self._add([bad])
        if are_new:
            log.warning("bad sample %s (%s): it is left out", bad, words_of(error))
        self._refuse_too_many(count, bad, error)

    def _add(self, bad: Sequence[str]) -> tuple[int, bool]:
        """Return how many different ones were met up to the last of these, and whether any is met for the first time."""
        with self._lock:
            before = len(self._known)
            last = max(self._known.setdefault(each, len(self._known) + 1) for each in bad)
            return last, len(self._known) > before

    def _refuse_too_many(self, count: int, bad: str, error: Exception) -> None:
        if count > self.budget:
            raise SubstitutionError(
                f"{count} bad samples, more than the budget of {self.budget}; the last one is {bad}: {words_of(error)}",
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


def words_of(error: Exception) -> str:
    """Return the message of an error, which may be anybody's, on one line; its type where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


def nothing_is_good(where: str, error: Exception) -> SubstitutionError:
    """Return the error for a window, or a corpus, in which no sample is good; ``error`` is that of the first."""
    return SubstitutionError(
        f"every sample of {where} is bad; the first: {words_of(error)}", hint="repair or remove the shard"
    )
