"""iostack: sharded corpora from any URI into training batches.

Importing this package imports neither torch nor any storage client; names below resolve at first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from iostack.hookspecs import hookimpl

if TYPE_CHECKING:
    from iostack.corpus.corpus import Corpus, open_corpus
    from iostack.loader.loader import Loader
    from iostack.loader.order.planned import Source
    from iostack.loader.state import merge_states

__version__ = "0.1.0"
__all__ = ["Corpus", "Loader", "Source", "__version__", "hookimpl", "merge_states", "open_corpus"]

_HOMES = {
    "Corpus": "iostack.corpus.corpus",
    "open_corpus": "iostack.corpus.corpus",
    "Loader": "iostack.loader.loader",
    "Source": "iostack.loader.order.planned",
    "merge_states": "iostack.loader.state",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'iostack' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
