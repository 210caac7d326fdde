"""Where shards are written to: a local folder, or a prefix of any writable fsspec file system.

A shard is made complete in a staging folder and then moved into place, so that a name never stands for half a file. Of a
local target that folder lies below the target, on the same disk; of a remote one in the cache folder.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from iostack.corpus.deadline import within
from iostack.corpus.local_origin import origin_errors
from iostack.corpus.origins import scheme_of
from iostack.errors import OriginError, PrepareError, redact

HIDDEN = ".iostack"
"""Folder below the target for all that is not data; listings leave it out."""
_PATIENCE_S = 600.0


class Target(Protocol):
    """Paths are relative, with forward slashes. Errors are ``PrepareError`` and ``OriginError``. Pickles."""

    uri: str
    """Without credentials."""
    staging: Path
    """A folder of this machine for files that are being made."""
    is_local: bool

    def sizes(self) -> dict[str, int]:
        """Return the bytes of all files by path, without hidden ones; empty where nothing is."""
        ...

    def read(self, path: str) -> bytes | None:
        """Return a small file, or None if it is not there."""
        ...

    def write(self, path: str, data: bytes) -> None:
        """Write or replace a small file atomically."""
        ...

    def create(self, path: str, data: bytes) -> bool:
        """Write a small file unless it is there, atomically where the storage can; return whether it was written."""
        ...

    def take(self, file: Path, path: str) -> None:
        """Move a complete local file into place, atomically and durably."""
        ...

    def delete(self, path: str) -> None:
        """Delete a file; one that is gone already is fine."""
        ...


def open_target(uri: str, options: Mapping[str, Any], staging: Path) -> Target:
    """Open the target behind ``uri``; ``staging`` is the folder for shards in the making if it is remote."""
    if scheme_of(uri) in ("file", "local"):
        if options:
            raise OriginError(f"local files take no storage options: {', '.join(sorted(options))}")
        return LocalTarget(Path(uri.split("://", 1)[-1]).expanduser().absolute())
    return RemoteTarget(uri, dict(options), staging)


class LocalTarget:
    """A folder of this machine, or of a mounted file system."""

    is_local = True

    def __init__(self, root: Path) -> None:
        self.uri = str(root)
        self.root = root
        self.staging = root / HIDDEN / "staging"
        if root.exists() and not root.is_dir():
            raise PrepareError(f"{root} is a file", hint="name a folder, which is created if it is not there")

    def sizes(self) -> dict[str, int]:
        with origin_errors(self.uri):
            return {
                path.relative_to(self.root).as_posix(): path.stat().st_size
                for path in self.root.rglob("*")
                if path.is_file() and not any(part.startswith(".") for part in path.relative_to(self.root).parts)
            }

    def read(self, path: str) -> bytes | None:
        with disk_errors(self.uri):
            try:
                return (self.root / path).read_bytes()
            except FileNotFoundError:
                return None

    def write(self, path: str, data: bytes) -> None:
        with disk_errors(self.uri):
            temporary = self._temporary(path, data)
            temporary.replace(self.root / path)

    def create(self, path: str, data: bytes) -> bool:
        with disk_errors(self.uri):
            temporary = self._temporary(path, data)
            try:
                os.link(temporary, self.root / path)
            except FileExistsError:
                return False
            finally:
                temporary.unlink()
            return True

    def take(self, file: Path, path: str) -> None:
        with disk_errors(self.uri):
            _sync(file)
            file.replace(self.root / path)
            _sync(self.root)

    def delete(self, path: str) -> None:
        with disk_errors(self.uri):
            (self.root / path).unlink(missing_ok=True)

    def _temporary(self, path: str, data: bytes) -> Path:
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        self.staging.mkdir(parents=True, exist_ok=True)
        temporary = self.staging / f"{os.getpid()}.{os.urandom(4).hex()}.part"
        try:
            temporary.write_bytes(data)
            _sync(temporary)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        return temporary


class RemoteTarget:
    """A prefix of an fsspec file system, opened anew in each process: clients do not survive a fork."""

    is_local = False

    def __init__(self, uri: str, options: dict[str, Any], staging: Path) -> None:
        self.uri = redact(uri)
        self.staging = staging
        self._arguments = (uri, options, staging)
        import fsspec.core

        with origin_errors(self.uri):
            self._system, root = fsspec.core.url_to_fs(uri, **options)
        self._root = root.rstrip("/")

    def __reduce__(self) -> tuple[object, ...]:
        return RemoteTarget, self._arguments

    def sizes(self) -> dict[str, int]:
        with origin_errors(self.uri):
            self._system.invalidate_cache()
            try:
                found = within(lambda: self._system.find(self._root, detail=True), patience_s=_PATIENCE_S)
            except FileNotFoundError:
                return {}
        below = {name[len(self._root) :].lstrip("/"): int(detail["size"] or 0) for name, detail in found.items()}
        return {path: size for path, size in below.items() if not any(part[:1] == "." for part in path.split("/"))}

    def read(self, path: str) -> bytes | None:
        with origin_errors(f"{self.uri}/{path}"):
            try:
                return bytes(within(lambda: self._system.cat_file(self._name(path)), patience_s=_PATIENCE_S))
            except FileNotFoundError:
                return None

    def write(self, path: str, data: bytes) -> None:
        with origin_errors(f"{self.uri}/{path}"):
            self._make_folder(path)
            within(lambda: self._system.pipe_file(self._name(path), data), patience_s=_PATIENCE_S)

    def create(self, path: str, data: bytes) -> bool:
        with origin_errors(f"{self.uri}/{path}"):
            self._make_folder(path)
            try:
                within(lambda: self._system.pipe_file(self._name(path), data, mode="create"), patience_s=_PATIENCE_S)
            except FileExistsError:
                return False
            except OSError as error:  # s3fs makes one of the store's answer
                if "PreconditionFailed" not in str(error) and "pre-condition" not in str(error).lower():
                    raise
                return False
        return True

    def take(self, file: Path, path: str) -> None:
        from fsspec.callbacks import Callback

        size, sent = file.stat().st_size, Callback()
        with origin_errors(f"{self.uri}/{path}"):
            self._make_folder(path)
            within(
                lambda: self._system.put_file(str(file), self._name(path), callback=sent),
                patience_s=_PATIENCE_S,
                progress=lambda: sent.value,
            )
            self._system.invalidate_cache()  # not every client takes an option that leaves its listings alone
            found = within(lambda: self._system.info(self._name(path)), patience_s=_PATIENCE_S)
        if found.get("size") != size:
            raise OriginError(f"{self.uri}/{path}: the store holds {found.get('size')} of {size:,} bytes after writing")
        file.unlink()

    def delete(self, path: str) -> None:
        with origin_errors(f"{self.uri}/{path}"), suppress(FileNotFoundError):
            within(lambda: self._system.rm_file(self._name(path)), patience_s=_PATIENCE_S)

    def _name(self, path: str) -> str:
        return f"{self._root}/{path}"

    def _make_folder(self, path: str) -> None:
        self._system.makedirs(self._name(path).rpartition("/")[0], exist_ok=True)


@contextmanager
def disk_errors(where: str) -> Iterator[None]:
    """Turn what a local disk answers into one line: full, read-only, gone."""
    try:
        yield
    except OSError as error:
        raise PrepareError(
            f"{where} cannot be written: {error.strerror or error}",
            hint="free some space or check the permissions, then run the same command again: it goes on",
        ) from error


def sweep(folder: Path) -> None:
    """Remove what a killed run left in the staging folder."""
    if folder.exists():
        with disk_errors(str(folder)):
            shutil.rmtree(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
