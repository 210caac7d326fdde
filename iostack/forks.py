"""What a forked child must renew: locks that another thread held at the moment of the fork stay locked in it for ever."""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class Renewed(Protocol):
    """Something with locks, or with clients that must not be shared with a child."""

    def renew_after_fork(self) -> None:
        """Replace the locks; runs in the child, before anything else there, and must not wait or fail."""
        ...


_renewed: weakref.WeakSet[Renewed] = weakref.WeakSet()


def renew_in_children(thing: Renewed) -> None:
    """Have ``thing`` renewed in every child that is forked while it lives."""
    _renewed.add(thing)


def _renew_all() -> None:
    for thing in list(_renewed):
        thing.renew_after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_all)
