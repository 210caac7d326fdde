"""Some objects of a folder, by a pattern in the URI: ``s3://bucket/data/train-*.parquet``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from iostack.corpus.contracts import ObjectInfo, Origin
from iostack.errors import CorpusNotFoundError

_PATTERN = re.compile(r"(.*[^/:])/([^/]*\*[^/]*)", re.DOTALL)


def split_pattern(uri: str) -> tuple[str, str]:
    """Return the folder and the pattern of a URI whose last part holds a star, else the URI and nothing."""
    found = _PATTERN.fullmatch(uri)
    return (found[1], found[2]) if found else (uri, "")


class MatchingOrigin:
    """The objects right below ``folder`` whose names match; nothing is written there, since its manifest is of all."""

    def __init__(self, folder: Origin, pattern: str) -> None:
        self.uri = f"{folder.uri.rstrip('/')}/{pattern}"
        self._folder = folder
        self._pattern = pattern

    def list(self) -> Sequence[ObjectInfo]:
        found = [info for info in self._folder.list() if self._matches(info.path)]
        if not found:
            raise CorpusNotFoundError(
                f"{self.uri}: nothing matches", hint=f"list {self._folder.uri}, and quote the star"
            )
        return found

    def info(self, path: str) -> ObjectInfo | None:
        return self._folder.info(path) if self._matches(path) else None

    def local_path(self, path: str) -> Path | None:
        return self._folder.local_path(path)

    def read(self, path: str, start: int, stop: int) -> bytes:
        return self._folder.read(path, start, stop)

    def fetch(self, path: str, destination: Path) -> None:
        self._folder.fetch(path, destination)

    def write(self, path: str, data: bytes) -> bool:
        return False

    def _matches(self, path: str) -> bool:
        return "/" not in path and fnmatchcase(path, self._pattern)
