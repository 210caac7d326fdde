"""What the layers above ask of a cache: have one object's bytes in a local file.

``WholeObjects`` is the first implementation, inside the process that reads; the node agent will be another.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol


@dataclass(frozen=True)
class Unpacking:
    """How a format makes a file that can be mapped out of an object that cannot.

    ``name`` tells what it makes from all else that is made of the same object. ``is_needed(file)`` costs a few small reads.
    ``unpack(file, output, source)`` writes the new file to ``output``; ``source`` names the object in its ``ShardError``.
    """

    name: str
    is_needed: Callable[[Path], bool]
    unpack: Callable[[Path, BinaryIO, str], None]


@dataclass(frozen=True)
class Item:
    """One object as a reader wants it: the version (``bytes``, ``etag``), decompressed or unpacked if it has to be."""

    path: str
    bytes: int
    etag: str = ""
    compression: str = ""
    unpacking: Unpacking | None = None

    @property
    def variant(self) -> str:
        """What is made of the object; empty if it is kept as it is."""
        return self.unpacking.name if self.unpacking else self.compression


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
        """Return the local file of an object that is resident, else None; costs a ``stat`` and ``Unpacking.is_needed``."""
        ...

    def bring(self, item: Item) -> Path:
        """Return the local file of an object, bringing it here first; idempotent.

        Raises:
            OriginError: it could not be fetched, is not of the promised size, is replaced all the time, or nobody made progress in time.
            ShardError: it cannot be decompressed or unpacked.
            CacheError: the cache folder cannot take it.
        """
        ...
