"""Tokens of units that lanes stand in, set aside on disk where they are too many for memory.

A lane needs the tokens of its unit until it has given them all, for they are the order. Where the units of all lanes take more
than a little, each lies in a file of the cache folder that has no name, and is mapped: pages that the system takes back when it
needs to. Such a file is gone with its map, however the process ends. A disk that is full, or slow, costs memory or time only.
"""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

import numpy as np

from iostack.corpus.mapping import map_index
from iostack.loader.sequences.pieces import Tokens

_IN_MEMORY_BYTES = 32 << 20
_LEAST_BYTES = 64 << 10
"""Below this a file is more trouble than memory."""

log = logging.getLogger("iostack.loader")


class Aside:
    """Where the units of ``num_lanes`` lanes are kept; ``folder`` is made when the first one is set aside. Thread-safe."""

    def __init__(self, folder: Path, num_lanes: int) -> None:
        self._folder = folder
        self._num_lanes = num_lanes
        self._is_refused = False

    def kept(self, tokens: Tokens) -> Tokens:
        """Return the same tokens: as they are where all lanes may hold so many, else mapped from a file."""
        is_little = tokens.nbytes * self._num_lanes <= _IN_MEMORY_BYTES or tokens.nbytes < _LEAST_BYTES
        if is_little or self._is_refused:
            return tokens
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with tempfile.TemporaryFile(dir=self._folder) as file:
                file.write(tokens.data.cast("B"))
                file.flush()
                mapped = map_index(Path(f"/dev/fd/{file.fileno()}"))
        except OSError as error:
            self._is_refused = True
            log.warning("units stay in memory, since %s takes none: %s", self._folder, error.strerror)
            return tokens
        return np.frombuffer(mapped, tokens.dtype)
