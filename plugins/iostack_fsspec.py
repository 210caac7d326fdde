"""Storage: local files directly, every other scheme through fsspec."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from iostack import hookimpl
from iostack.corpus.contracts import ObjectInfo, OpenOrigin
from iostack.errors import CorpusNotFoundError, IostackError, MissingExtraError, OriginError, redact

T = TypeVar("T")

# Which extra of iostack brings the client of a scheme.
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "az": "azure", "abfs": "azure", "adl": "azure"}


@hookimpl
def iostack_origins() -> Mapping[str, OpenOrigin]:
    return {"file": LocalOrigin, "local": LocalOrigin, "*": FsspecOrigin}


class LocalOrigin:
    """A folder, or one file, of this machine. Hidden files and folders are not listed."""

    def __init__(self, uri: str, options: Mapping[str, Any]) -> None:
        path = Path(re.sub(r"^(file|local)://", "", uri)).expanduser().absolute()
        if options:
            raise OriginError(f"local files take no storage options: {', '.join(sorted(options))}")
        self.uri = str(path)
        self._single = path.name if path.is_file() else None
        self._root = path.parent if self._single else path

    def list(self) -> Sequence[ObjectInfo]:
        if self._single:
            return [info for info in [self.info(self._single)] if info]
        if not self._root.is_dir():
            raise CorpusNotFoundError(f"{self.uri}: there is no such file or folder", hint="check the path")
        found = sorted(self._walk(), key=lambda info: info.path)
        if not found:
            raise CorpusNotFoundError(f"{self.uri}: the folder is empty", hint="check the path")
        return found

    def _walk(self) -> Iterator[ObjectInfo]:
        with _origin_errors(self.uri):
            seen: set[tuple[int, int]] = set()
            for folder, folders, names in os.walk(self._root, followlinks=True, onerror=_raise):
                entered = os.stat(folder)
                if (entered.st_dev, entered.st_ino) in seen:  # a link back up, or two ways to one folder
                    folders.clear()
                    continue
                seen.add((entered.st_dev, entered.st_ino))
                folders[:] = sorted(name for name in folders if not name.startswith("."))
                below = os.path.relpath(folder, self._root)
                for name in names:
                    path = name if below == "." else f"{below}/{name}"
                    path.encode()  # a name that is no UTF-8 could not be written to a manifest
                    if not name.startswith(".") and (info := self.info(path)) is not None:
                        yield info

    def info(self, path: str) -> ObjectInfo | None:
        if self._single not in (None, path):
            return None
        try:
            found = os.stat(self._root / path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise OriginError(f"{self._root / path}: {error.strerror}", hint="check the permissions") from error
        if not stat.S_ISREG(found.st_mode):
            return None
        return ObjectInfo(path, found.st_size, f"{found.st_mtime_ns:x}-{found.st_size:x}")

    def local_path(self, path: str) -> Path:
        return self._root / path

    def read(self, path: str, start: int, stop: int) -> bytes:
        with _origin_errors(self.uri), open(self._root / path, "rb") as file:
            file.seek(start)
            return file.read(stop - start)

    def fetch(self, path: str, destination: Path) -> None:
        import shutil

        with _origin_errors(self.uri):
            shutil.copyfile(self._root / path, destination)

    def write(self, path: str, data: bytes) -> bool:
        if self._single:
            return False
        target = self._root / path
        temporary = target.with_name(f"{target.name}.{os.getpid()}.part")
        try:
            target.parent.mkdir(exist_ok=True)
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(target)
        except OSError as error:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
                return False
            raise OriginError(f"{target}: {error.strerror}") from error
        return True


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

            with _origin_errors(self.uri), _missing_clients(self.uri):
                system, root = fsspec.core.url_to_fs(self._full_uri, **self._options)
            self._opened = os.getpid(), system, root
        return self._opened[1], self._opened[2]

    def _at(self, path: str) -> tuple[Any, str]:
        system, root = self._open()
        root = root.rstrip("/")
        return system, root if path == _last(root) and self._is_one_object else f"{root}/{path}"

    @cached_property
    def _is_one_object(self) -> bool:
        system, root = self._open()
        with _origin_errors(self.uri):
            return bool(system.isfile(root))

    def list(self) -> Sequence[ObjectInfo]:
        system, root = self._open()
        with _origin_errors(self.uri):
            details = _found(lambda: system.find(root, detail=True)) or {}
        root = root.rstrip("/")
        infos = []
        for full, detail in details.items():
            if full.rstrip("/") == root:
                return [info for info in [self.info(_last(root))] if info]
            path = full[len(root) :].lstrip("/") if full.startswith(root) else _last(full)
            if any(part.startswith(".") for part in path.split("/")):
                continue
            if detail.get("size") is None:
                with _origin_errors(self.uri):
                    detail = system.info(full)
            infos.append(_object(path, detail))
        if not infos:
            raise CorpusNotFoundError(f"{self.uri}: nothing is there", hint="check the URI and the credentials")
        return sorted(infos, key=lambda info: info.path)

    def info(self, path: str) -> ObjectInfo | None:
        system, full = self._at(path)
        with _origin_errors(self.uri):
            detail = _found(lambda: system.info(full))
        return _object(path, detail) if detail and detail.get("type") != "directory" else None

    def local_path(self, path: str) -> None:
        return None

    def read(self, path: str, start: int, stop: int) -> bytes:
        system, full = self._at(path)
        with _origin_errors(self.uri):
            return bytes(system.cat_file(full, start=start, end=stop))

    def fetch(self, path: str, destination: Path) -> None:
        system, full = self._at(path)
        with _origin_errors(self.uri):
            system.get_file(full, str(destination))

    def write(self, path: str, data: bytes) -> bool:
        if self._is_one_object:
            return False
        system, full = self._at(path)
        try:
            with _origin_errors(self.uri):
                system.makedirs(full.rsplit("/", 1)[0], exist_ok=True)
                system.pipe_file(full, data)
        except OriginError as error:
            if isinstance(error.__cause__, (NotImplementedError, PermissionError)):
                return False
            raise
        return True


def _object(path: str, detail: Mapping[str, Any]) -> ObjectInfo:
    version = next((detail[key] for key in _VERSION_KEYS if detail.get(key)), "")
    return ObjectInfo(path, int(detail["size"]), str(version).strip('"'))


_VERSION_KEYS = (
    "ETag",
    "etag",
    "md5Hash",
    "content_md5",
    "mtime",
    "LastModified",
    "last_modified",
    "updated",
    "created",
)


def _last(path: str) -> str:
    return path.rsplit("/", 1)[-1]


def _found(ask: Callable[[], T]) -> T | None:
    try:
        return ask()
    except FileNotFoundError:
        return None


@contextmanager
def _origin_errors(uri: str) -> Iterator[None]:
    try:
        yield
    except IostackError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise  # the local disk's fault: the cache says so
        detail = redact(f"{type(error).__name__}: {error}".splitlines()[0])
        raise OriginError(f"{uri}: {detail}", hint="check the URI, the credentials and the network") from error


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


def _raise(error: OSError) -> None:
    raise error
