"""Storage of this machine: a folder or one file, used in place."""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from iostack.corpus.contracts import ObjectInfo
from iostack.errors import CorpusNotFoundError, IostackError, OriginError, redact


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
        with origin_errors(self.uri):
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
        with origin_errors(self.uri), open(self._root / path, "rb") as file:
            file.seek(start)
            return file.read(stop - start)

    def fetch(self, path: str, destination: Path) -> None:
        with origin_errors(self.uri):
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


def _raise(error: OSError) -> None:
    raise error


@contextmanager
def origin_errors(uri: str) -> Iterator[None]:
    """Turn what storage raises into an ``OriginError`` without credentials; our own errors pass."""
    try:
        yield
    except IostackError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise  # the local disk's fault: the cache says so
        detail = redact(f"{type(error).__name__}: {error}".splitlines()[0])
        raise OriginError(f"{uri}: {detail}", hint="check the URI, the credentials and the network") from error
