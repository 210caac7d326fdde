"""Hints for a name that nobody offers."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def closest(name: str, offered: Iterable[str]) -> str:
    """Return a hint: the offered name that is most like ``name``, else all that are offered."""
    names = sorted(offered)
    near = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(names) or 'none'}"
