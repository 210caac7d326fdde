"""Checks for plugin authors, as assertions to call in tests; what passes them works in the loader.

    check_format(corpus_uri)                       reading by row, damage, threads
    check_transform("shorten", samples)            purity, threads, keys
    check_origin(open_origin, uri, objects)        listing, ranges, errors without credentials
    check_resume_at_every_step(make_loader)        the same samples on any ranks, stopped at any step or never

Names resolve at first use: the last one imports torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from iostack.testing.formats import check_damage, check_format
    from iostack.testing.origins import check_origin
    from iostack.testing.resume import check_resume_at_every_step, take_steps
    from iostack.testing.transforms import check_transform

__all__ = [
    "check_damage",
    "check_format",
    "check_origin",
    "check_resume_at_every_step",
    "check_transform",
    "take_steps",
]

_HOMES = {
    "check_damage": "formats",
    "check_format": "formats",
    "check_origin": "origins",
    "check_resume_at_every_step": "resume",
    "check_transform": "transforms",
    "take_steps": "resume",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'iostack.testing' has no attribute {name!r}")
    return getattr(importlib.import_module(f"iostack.testing.{_HOMES[name]}"), name)
