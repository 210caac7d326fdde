"""What the layers above ask of a cache: have one object's bytes in a local file.

``WholeObjects`` is the first implementation, inside the process that reads; the node agent will be another.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class Item:
    """One object as a reader wants it: the version (``bytes``, ``etag``), and decompressed if it is compressed."""

    path: str
    bytes: int
    etag: str = ""
    compression: str = ""


class Source(Protocol):
    """What a cache needs of an origin."""

    uri: str

    def info(self, path: str) -> object | None:
        """Return what an object is like now, size and version, to be compared with ``==``; None if it is not there."""
        ...

    def local_path(self, path: str) -> Path | None:
        """Return the path of an object that is already a local file, else None."""
        ...

    def fetch(self, path: str, destination: Path) -> None:
        """Copy one whole object to a new local file."""
        ...


class Residency(Protocol):
    """Brings objects to this machine. Thread-safe; safe between processes that share the folder."""

    def find(self, item: Item) -> Path | None:
        """Return the local file of an object that is resident, else None; costs at most one ``stat``."""
        ...

    def bring(self, item: Item) -> Path:
        """Return the local file of an object, bringing it here first; idempotent.

        Raises:
            OriginError: it could not be fetched, is not of the promised size, is replaced all the time, or nobody made progress in time.
            ShardError: it cannot be decompressed.
            CacheError: the cache folder cannot take it.
        """
        ...
