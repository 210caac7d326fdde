"""Names in messages: those that are offered, and hints for one that nobody offers."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


def closest(name: str, offered: Iterable[str]) -> str:
    """Return a hint: the offered name that is most like ``name``, else all that are offered."""
    names = sorted(offered)
    near = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(names) or 'none'}"


def shortened(names: Sequence[str], most: int = 16) -> str:
    """Return names with commas between them, for a message of one line; hostile data may have thousands."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(name[:64] for name in names[:most]) + more
