"""Storage: local files directly, every other scheme through fsspec."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qsl

from iostack import hookimpl
from iostack.corpus.contracts import ObjectInfo, OpenOrigin
from iostack.corpus.local_origin import LocalOrigin, origin_errors
from iostack.corpus.origins import split_query, uri_below
from iostack.errors import CorpusNotFoundError, MissingExtraError, OriginError, redact

T = TypeVar("T")

# Which extra of iostack brings the client of a scheme.
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "az": "azure", "abfs": "azure", "adl": "azure"}

# What the clients call the version of an object, best first.
_VERSIONS = ["ETag", "etag", "md5Hash", "content_md5", "mtime", "LastModified", "last_modified", "updated", "created"]


@hookimpl
def iostack_origins() -> Mapping[str, OpenOrigin]:
    return {"file": LocalOrigin, "local": LocalOrigin, "*": FsspecOrigin}


class FsspecOrigin:
    """Anything that fsspec opens. The file system is made anew in each process: its clients do not survive a fork."""

    def __init__(self, uri: str, options: Mapping[str, Any]) -> None:
        self.uri = redact(uri)
        self._full_uri = uri
        self._options = dict(options)
        self._opened: tuple[int, Any, str] = (-1, None, "")
        self._open()

    def _open(self) -> tuple[Any, str]:
        pid, system, root = self._opened
        if pid != os.getpid():
            import fsspec.core

            uri, options = _query_as_option(self._full_uri, self._options)
            with origin_errors(self.uri), _missing_clients(self.uri):
                system, root = fsspec.core.url_to_fs(uri, **options)
            self._opened = os.getpid(), system, root
        return self._opened[1], self._opened[2]

    def _at(self, path: str) -> tuple[Any, str]:
        system, root = self._open()
        return system, root if path == _last(root) and self._is_one_object else uri_below(root, path)

    @cached_property
    def _is_one_object(self) -> bool:
        system, root = self._open()
        with origin_errors(self.uri):
            if not _is_http(root):
                return bool(system.isfile(root))
            # To fsspec whatever a web server answers is a file, also the page that lists a folder.
            detail = None if split_query(root)[0].endswith("/") else _found(lambda: system.info(root))
            return detail is not None and detail.get("mimetype") != "text/html"

    def list(self) -> Sequence[ObjectInfo]:
        system, root = self._open()
        if _is_http(root) and self._is_one_object:  # else fsspec reads all of it in search of links
            return [info for info in [self.info(_last(root))] if info]
        with origin_errors(self.uri):
            details = _found(lambda: system.find(root, detail=True)) or {}
            system.invalidate_cache()  # else info() answers from this listing for as long as the process lives
        root = root.rstrip("/")
        infos = []
        for full, detail in details.items():
            if full.rstrip("/") == root:
                infos = [info for info in [self.info(_last(root))] if info]
                break
            path = full[len(root) :].lstrip("/") if full.startswith(root) else _last(full)
            if any(part.startswith(".") for part in path.split("/")):
                continue
            if detail.get("size") is None:
                with origin_errors(self.uri):
                    detail = system.info(full)
            infos.append(_object(path, detail))
        if not infos:
            raise CorpusNotFoundError(f"{self.uri}: nothing is there", hint="check the URI and the credentials")
        return sorted(infos, key=lambda info: info.path)

    def info(self, path: str) -> ObjectInfo | None:
        system, full = self._at(path)
        with origin_errors(self.uri):
            detail = _found(lambda: system.info(full))
        if not detail or detail.get("type") == "directory":
            return None
        if self._is_one_object and full != self._open()[1]:  # what a lenient server answers below its one object
            return None
        return _object(path, detail)

    def local_path(self, path: str) -> None:
        return None

    def read(self, path: str, start: int, stop: int) -> bytes:
        system, full = self._at(path)
        with origin_errors(self.uri):
            return bytes(system.cat_file(full, start=start, end=stop))

    def fetch(self, path: str, destination: Path) -> None:
        system, full = self._at(path)
        with origin_errors(self.uri):
            system.get_file(full, str(destination))

    def write(self, path: str, data: bytes) -> bool:
        if self._is_one_object:
            return False
        system, full = self._at(path)
        try:
            with origin_errors(self.uri):
                system.makedirs(full.rsplit("/", 1)[0], exist_ok=True)
                system.pipe_file(full, data)
        except OriginError as error:
            if isinstance(error.__cause__, (NotImplementedError, PermissionError)):
                return False
            raise
        return True


def _object(path: str, detail: Mapping[str, Any]) -> ObjectInfo:
    if detail.get("size") is None:
        raise OriginError(f"{path}: the store does not tell its size", hint="serve it with a Content-Length")
    version = next((detail[key] for key in _VERSIONS if detail.get(key)), "")
    return ObjectInfo(path, int(detail["size"]), str(version).strip('"'))


def _last(path: str) -> str:
    return split_query(path)[0].rsplit("/", 1)[-1]


def _is_http(path: str) -> bool:
    return path.lower().startswith(("http://", "https://"))


def _query_as_option(uri: str, options: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """Move the query of a web folder to where fsspec adds it to every request: the links of its listing have none."""
    base, query = split_query(uri)
    if not (query and base.endswith("/") and _is_http(uri)) or "params" in options:
        return uri, options
    return base, {**options, "params": parse_qsl(query[1:], keep_blank_values=True)}


def _found(ask: Callable[[], T]) -> T | None:
    try:
        return ask()
    except FileNotFoundError:
        return None


@contextmanager
def _missing_clients(uri: str) -> Iterator[None]:
    scheme = uri.split(":", 1)[0].lower()
    try:
        yield
    except ImportError as error:
        extra = _EXTRAS.get(scheme)
        install = f'pip install "iostack[{extra}]"' if extra else f"{error}".splitlines()[0]
        raise MissingExtraError(f"{uri}: no client for {scheme}:// is installed", hint=install) from error
    except ValueError as error:
        if "rotocol not known" not in str(error):
            raise
        raise OriginError(f"{uri}: nothing opens {scheme}://", hint="check the scheme; run: iostack plugins") from error
