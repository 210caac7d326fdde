"""What a checkpoint needs of the place where it lies, and the choice of the one that a URI names.

Paths are relative to the root, with ``/``. A store may be used by several threads; it raises OSError for what storage
answered (FileNotFoundError for what is missing) and never leaves half a file under the name of a whole one, except for
a data file whose writer died: those lie in attempt folders that no manifest names.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

from iostack.errors import redact


class Sink(Protocol):
    """An open new file. It becomes durable when its context ends without an exception."""

    def write(self, data: memoryview, /) -> object: ...


class Store(Protocol):
    uri: str

    def create(self, path: str, data: bytes) -> bool:
        """Write a file that must not exist, atomically and durably; False if it existed, whoever made it."""

    def put(self, path: str, data: bytes) -> None:
        """Write or replace a file, atomically."""

    def open_new(self, path: str) -> AbstractContextManager[Sink]:
        """Open a data file that does not exist yet for writing in order."""

    def read(self, path: str, *, limit: int) -> bytes:
        """Return a whole file; a file of more than ``limit`` bytes is a BrokenStepError."""

    def read_range(self, path: str, begin: int, end: int) -> bytes | bytearray:
        """Return bytes [begin, end), fewer if the file ends before."""

    def files(self, folder: str) -> dict[str, int]:
        """Return the names and sizes of the files directly in a folder; nothing for a folder that does not exist."""

    def folders(self, folder: str) -> list[str]:
        """Return the names of the folders directly in a folder."""

    def delete(self, path: str) -> None:
        """Delete a file; one that is gone already is fine."""

    def delete_folder(self, path: str) -> None:
        """Delete a folder and all that is in it; one that is gone already is fine."""


def open_store(uri: str, storage_options: Mapping[str, Any]) -> Store:
    """Return the store for a path or URI; ``storage_options`` go to fsspec."""
    scheme, separator, rest = uri.partition("://")
    if not separator or scheme in ("file", "local"):
        from trainer.checkpoint.local_store import LocalStore

        return LocalStore(rest if separator else uri)
    from trainer.checkpoint.fsspec_store import FsspecStore

    return FsspecStore(uri, storage_options)


def locate(store: Store, path: str) -> str:
    """Return the full name of a path, without credentials, for messages."""
    return redact(f"{store.uri.rstrip('/')}/{path}")
