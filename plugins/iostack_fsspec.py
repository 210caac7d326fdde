"""Storage: local files directly, every other scheme through fsspec."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qsl

from iostack import hookimpl
from iostack.corpus.contracts import ObjectInfo, OpenOrigin
from iostack.corpus.deadline import within
from iostack.corpus.local_origin import LocalOrigin, origin_errors
from iostack.corpus.origins import object_uri, split_query, uri_below
from iostack.errors import CorpusNotFoundError, MissingExtraError, OriginError, redact
from iostack.lazy import lazy

T = TypeVar("T")

# Which extra of iostack brings the client of a scheme.
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "az": "azure", "abfs": "azure", "adl": "azure"}

# What the clients call the version of an object, best first.
_VERSIONS = ["ETag", "etag", "md5Hash", "content_md5", "Content-MD5", "Digest"]
_VERSIONS += ["mtime", "LastModified", "Last-Modified", "last_modified", "updated", "created"]


# How long a call may last without moving a byte. Clients give up sooner and try again: S3's takes 15 s five times.
_PATIENCE_S = 300.0
_HTTP_SILENCE_S = 60.0


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
                if _is_http(uri):
                    options = _with_http_timeout(options)
                system, root = fsspec.core.url_to_fs(uri, **options)
            self._opened = os.getpid(), system, root
        return self._opened[1], self._opened[2]

    def _at(self, path: str) -> tuple[Any, str]:
        system, root = self._open()
        return system, root if path == _last(root) and self._is_one_object else uri_below(root, path)

    @lazy
    def _is_one_object(self) -> bool:
        system, root = self._open()
        with self._call() as call:
            if not _is_http(root):
                return bool(call(lambda: system.isfile(root)))
            # To fsspec whatever a web server answers is a file, also the page that lists a folder.
            detail = None if split_query(root)[0].endswith("/") else call(lambda: _found(lambda: system.info(root)))
            return detail is not None and detail.get("mimetype") != "text/html"

    def list(self) -> Sequence[ObjectInfo]:
        system, root = self._open()
        if _is_http(root) and self._is_one_object:  # else fsspec reads all of it in search of links
            return [info for info in [self.info(_last(root))] if info]
        with self._call() as call:
            details = call(lambda: _found(lambda: system.find(root, detail=True))) or {}
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
                with self._call(path) as call:
                    detail = call(partial(system.info, full))
            infos.append(_object(path, detail))
        if not infos:
            raise CorpusNotFoundError(f"{self.uri}: nothing is there", hint="check the URI and the credentials")
        return sorted(infos, key=lambda info: info.path)

    def info(self, path: str) -> ObjectInfo | None:
        system, full = self._at(path)
        with self._call(path) as call:
            detail = call(lambda: _found(lambda: system.info(full)))
        if not detail or detail.get("type") == "directory":
            return None
        if self._is_one_object and full != self._open()[1]:  # what a lenient server answers below its one object
            return None
        return _object(path, detail)

    def local_path(self, path: str) -> None:
        return None

    def read(self, path: str, start: int, stop: int) -> bytes:
        system, full = self._at(path)
        with self._call(path) as call:
            data = bytes(call(lambda: system.cat_file(full, start=start, end=stop)))
        return data if len(data) <= stop - start else data[start:stop]  # the server knows no ranges and sent it all

    def fetch(self, path: str, destination: Path) -> None:
        system, full = self._at(path)
        with self._call(path) as call:
            call(lambda: system.get_file(full, str(destination)), progress=lambda: _size(destination))

    def write(self, path: str, data: bytes) -> bool:
        if self._is_one_object:
            return False
        system, full = self._at(path)
        try:
            with self._call(path) as call:
                call(lambda: system.makedirs(full.rsplit("/", 1)[0], exist_ok=True))
                call(lambda: system.pipe_file(full, data))
        except OriginError as error:
            if isinstance(error.__cause__, (NotImplementedError, PermissionError)):
                return False
            raise
        return True

    @contextmanager
    def _call(self, path: str = "") -> Iterator[Callable[..., Any]]:
        """Give a function that makes one call to the client, with a deadline; errors name the object."""
        with origin_errors(object_uri(self.uri, path) if path else self.uri):
            yield partial(within, patience_s=_PATIENCE_S)


def _object(path: str, detail: Mapping[str, Any]) -> ObjectInfo:
    if detail.get("size") is None:
        raise OriginError(f"{path}: the store does not tell its size", hint="serve it with a Content-Length")
    version = next((detail[key] for key in _VERSIONS if detail.get(key)), "")
    if isinstance(version, datetime):  # the same file system gives a number of seconds elsewhere
        version = version.timestamp()
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
    except FileNotFoundError as error:
        cause = error.__cause__
        # fsspec says so of a web server that failed or fell silent, too.
        failed = getattr(cause, "status", 404) in (408, 429, *range(500, 600))
        unreached = type(cause).__module__.startswith("aiohttp") and not hasattr(cause, "status")
        if cause is not None and (failed or unreached or isinstance(cause, (TimeoutError, ConnectionError))):
            raise cause from None
        return None


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def _with_http_timeout(options: Mapping[str, Any]) -> Mapping[str, Any]:
    """Bound how long a web server may be silent; aiohttp bounds the whole of a fetch instead, which large ones exceed."""
    import aiohttp

    timeout = aiohttp.ClientTimeout(total=None, sock_connect=_HTTP_SILENCE_S, sock_read=_HTTP_SILENCE_S)
    return {**options, "client_kwargs": {"timeout": timeout, **options.get("client_kwargs", {})}}


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
