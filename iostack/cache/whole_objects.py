"""Whole objects in a folder: each is filled once, by one process, and appears complete or not at all.

absent ──lock──> filling (.part) ──size and version checked, fsync, rename──> resident
   ^                 │ killed: the lock goes with the process
   └─────────────────┘ the next one to fill starts the .part anew
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from iostack import logs
from iostack.cache.decompress import decompress
from iostack.cache.folder import object_id
from iostack.cache.lock import fill_lock, sweep
from iostack.cache.output import RoomyFile
from iostack.cache.residency import Item, Source
from iostack.errors import CacheError, OriginError
from iostack.stages import count, count_brought, stage

logger = logs.logger(__name__)

FREE_FLOOR_BYTES = 256 << 20
"""Space that a fill leaves free on the disk of the cache folder."""


class WholeObjects:
    """Residency of one origin's objects; ``namespace`` tells this origin from all others that share the folder.

    Local uncompressed files are used in place. ``patience_s``: how long to wait for another process that fills the same
    object without making progress.
    """

    def __init__(self, source: Source, folder: Path, *, namespace: str, patience_s: float = 300.0) -> None:
        self._source = source
        self._folder = folder / "objects"
        self._namespace = namespace
        self._patience_s = patience_s
        self._swept = False

    def find(self, item: Item) -> Path | None:
        """Return the local file of an object that is resident, else None."""
        if (
            not item.compression
            and (local := self._source.local_path(item.path)) is not None
            and _is_ready(item, local)
        ):
            return local
        target = self._target(item)
        return target if target.exists() else None

    def bring(self, item: Item) -> Path:
        """Return the local file of an object, bringing it here first; see ``Residency.bring``."""
        if (found := self.find(item)) is not None:
            return found
        target = self._target(item)
        with _disk_errors(self._folder):
            target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._sweep_once()
            name = f"{self._source.uri} {item.path}"
            # Who waits for the lock waits for the process that fetches.
            with stage("origin", label=name), fill_lock(target, waits_for=name, patience_s=self._patience_s):
                if not target.exists():
                    with stage("cache", samples=1, label=name):
                        self._fill(item, target)
                    count("cache", num_bytes=target.stat().st_size)
                    count_brought()
        return target

    def _target(self, item: Item) -> Path:
        name = object_id(self._namespace, item.path, item.bytes, item.etag, item.variant)
        return self._folder / name[:2] / name

    def _fill(self, item: Item, target: Path) -> None:
        part, fetched = target.with_suffix(".part"), target.with_suffix(".fetch.part")
        try:
            original = self._source.local_path(item.path) if item.variant else None
            if original is None:
                original = fetched if item.variant else part
                self._fetch(item, original)
            name = f"{self._source.uri} {item.path}"
            if item.compression:
                decompress(original, part, kind=item.compression, name=name, free_floor_bytes=FREE_FLOOR_BYTES)
            elif item.unpacking and item.unpacking.is_needed(original):
                with RoomyFile(part, name=name, free_floor_bytes=FREE_FLOOR_BYTES) as output:
                    item.unpacking.unpack(original, output, name)
            elif original is fetched:
                fetched.replace(part)
            with part.open("rb") as file:
                os.fsync(file.fileno())
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)
            fetched.unlink(missing_ok=True)

    def _fetch(self, item: Item, destination: Path) -> None:
        free = shutil.disk_usage(destination.parent).free
        if item.bytes > free - FREE_FLOOR_BYTES:
            raise CacheError(
                f"the cache folder {self._folder.parent} is full: {item.path} takes {item.bytes:,} bytes, "
                f"{max(0, free - FREE_FLOOR_BYTES):,} are free",
                hint="free some space, or name another folder with --cache-dir or IOSTACK_CACHE",
            )
        if not self._fetch_unchanged(item, destination) and not self._fetch_unchanged(item, destination):
            raise OriginError(
                f"{self._source.uri} {item.path}: it was replaced while it was fetched, twice",
                hint="wait until nobody writes it, then run: iostack index URI",
            )
        size = destination.stat().st_size
        if size != item.bytes:
            raise OriginError(
                f"{self._source.uri} {item.path}: {size:,} bytes came instead of {item.bytes:,}",
                hint="the object changes while it is read, or the store cut the answer short: try again",
            )

    def _fetch_unchanged(self, item: Item, destination: Path) -> bool:
        """Fetch an object; return whether it is the same as before: parts of two versions may be of the right size."""
        destination.unlink(missing_ok=True)
        with stage("origin", num_bytes=item.bytes, label=item.path):
            before = self._source.info(item.path)
            self._source.fetch(item.path, destination)
            return self._source.info(item.path) == before

    def _sweep_once(self) -> None:
        if not self._swept:
            self._swept = True
            if removed := sweep(self._folder):
                logger.info("removed %d unfinished files of killed processes from %s", removed, self._folder)


def _is_ready(item: Item, file: Path) -> bool:
    return item.unpacking is None or not item.unpacking.is_needed(file)


@contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CacheError(
            f"the cache folder {folder.parent} cannot be used: {error.strerror or error}",
            hint="free some space, or name another folder with --cache-dir or IOSTACK_CACHE",
        ) from error
