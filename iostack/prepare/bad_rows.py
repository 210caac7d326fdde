"""Rows that a conversion leaves out because they are bad, and when they are too many."""

from __future__ import annotations

from dataclasses import dataclass, field

from iostack.errors import PrepareError, SampleError

_NAMED_BAD_ROWS = 5


@dataclass
class BadRows:
    """Rows that are left out, of which so many are allowed; the first are named."""

    allowed: int
    count: int = 0
    named: list[str] = field(default_factory=list)

    def add(self, where: str, error: Exception) -> None:
        """Count one, ``where`` being its shard and row.

        Raises:
            PrepareError: it is one too many.
        """
        self.count += 1
        if len(self.named) < _NAMED_BAD_ROWS:
            told = error.message if isinstance(error, SampleError) else f"{type(error).__name__}: {error}"
            self.named.append(told if where.partition(" row ")[0] in told else f"{where}: {told}")
        if self.count > self.allowed:
            raise too_many_bad(self.count, self.allowed, self.named[0])


def too_many_bad(count: int, allowed: int, first: str) -> PrepareError:
    """Return the error for more bad samples than are allowed."""
    allowed_text = "none is allowed" if not allowed else f"more than the {allowed:,} that are allowed"
    return PrepareError(
        f"{count:,} bad sample{'s' if count > 1 else ''}, {allowed_text}; the first: {first}",
        hint="repair the source, or leave bad samples out with --max-bad-samples N; the same command goes on",
    )
