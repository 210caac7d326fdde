"""Checkpoints on a local or mounted file system.

A file is created by writing a temporary one beside it, fsync, and ``link`` to its name, which fails if the name is
taken: the one conditional create that works on every POSIX file system, NFS included. The folder is then synced, so
that what was reported as written survives a power cut.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO

from iostack.errors import BrokenStepError, CheckpointError

_WRITE_BUFFER_BYTES = 1 << 20


class LocalStore:
    """A folder; it is created with the first file."""

    def __init__(self, root: str) -> None:
        self.uri = os.path.abspath(root)

    def create(self, path: str, data: bytes) -> bool:
        with self._temporary(path, data) as (temporary, name):
            try:
                os.link(temporary, name)
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
                    raise
                raise CheckpointError(
                    f"cannot create {name} conditionally: this file system has no hard links ({error.strerror})",
                    hint="keep checkpoints on a file system with hard links or in an object store",
                ) from error
        _sync_folder(os.path.dirname(name))
        return True

    def put(self, path: str, data: bytes) -> None:
        with self._temporary(path, data) as (temporary, name):
            os.replace(temporary, name)
        _sync_folder(os.path.dirname(name))

    @contextmanager
    def open_new(self, path: str) -> Iterator[BinaryIO]:
        name = self._name(path)
        _make_folders(os.path.dirname(name))
        with open(name, "xb", buffering=_WRITE_BUFFER_BYTES) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        _sync_folder(os.path.dirname(name))

    def read(self, path: str, *, limit: int) -> bytes:
        with self._open(path) as file:
            num_bytes = os.fstat(file.fileno()).st_size
            if num_bytes > limit:
                raise BrokenStepError(
                    f"{self._name(path)} has {num_bytes} bytes, more than the {limit} that it can have"
                )
            return file.read(limit)

    def read_range(self, path: str, begin: int, end: int) -> bytearray:
        buffer = bytearray(end - begin)
        with self._open(path) as file:
            view = memoryview(buffer)
            done = 0
            while done < len(view):
                count = os.preadv(file.fileno(), [view[done:]], begin + done)
                if not count:
                    break
                done += count
        return buffer if done == len(buffer) else buffer[:done]

    def files(self, folder: str) -> dict[str, int]:
        return {
            entry.name: entry.stat().st_size for entry in self._scan(folder) if entry.is_file(follow_symlinks=False)
        }

    def folders(self, folder: str) -> list[str]:
        return [entry.name for entry in self._scan(folder) if entry.is_dir(follow_symlinks=False)]

    def delete(self, path: str) -> None:
        with suppress(FileNotFoundError):
            os.unlink(self._name(path))
            _sync_folder(os.path.dirname(self._name(path)))

    def delete_folder(self, path: str) -> None:
        with suppress(FileNotFoundError):
            shutil.rmtree(self._name(path))

    def _name(self, path: str) -> str:
        return os.path.join(self.uri, path)

    def _open(self, path: str) -> BinaryIO:
        """Open a regular file: never a link that leads elsewhere, nor a pipe that would block."""
        name = self._name(path)
        try:
            descriptor = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise FileNotFoundError(errno.ENOENT, "a link, not a file", name) from error
            raise
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise FileNotFoundError(errno.ENOENT, "not a regular file", name)
        return os.fdopen(descriptor, "rb", buffering=0)

    def _scan(self, folder: str) -> list[os.DirEntry[str]]:
        try:
            with os.scandir(self._name(folder)) as entries:
                return [entry for entry in entries if not entry.name.startswith(".")]
        except FileNotFoundError:
            return []

    @contextmanager
    def _temporary(self, path: str, data: bytes) -> Iterator[tuple[str, str]]:
        name = self._name(path)
        folder = os.path.dirname(name)
        _make_folders(folder)
        temporary = os.path.join(folder, f".{os.path.basename(name)}.{secrets.token_hex(8)}")
        try:
            with open(temporary, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            yield temporary, name
        finally:
            with suppress(FileNotFoundError):
                os.unlink(temporary)


def _make_folders(folder: str) -> None:
    if os.path.isdir(folder):
        return
    parent = os.path.dirname(folder)
    _make_folders(parent)
    with suppress(FileExistsError):
        os.mkdir(folder)
    _sync_folder(parent)


def _sync_folder(folder: str) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
