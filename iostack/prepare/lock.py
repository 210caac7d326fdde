"""One conversion per target at a time.

On a local target the lock is the kernel's and goes with the process. In an object store it is an object, created
conditionally and written anew while its owner lives; one that its owner no longer writes is taken over.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from iostack.errors import PrepareError
from iostack.prepare.target import HIDDEN, LocalTarget, Target, disk_errors

LOCK = f"{HIDDEN}/prepare.lock"
_RENEW_EVERY_S = 10.0
_ABANDONED_AFTER_S = 60.0
_LOOK_EVERY_S = 1.0


@contextmanager
def target_lock(target: Target) -> Iterator[Callable[[], None]]:
    """Hold the target; yields a function to call every few seconds, which renews the lock.

    Raises:
        PrepareError: another process holds it; names the process. Or, from the function, it was taken away.
    """
    if isinstance(target, LocalTarget):
        with _local_lock(target.root / LOCK, target.uri):
            yield lambda: None
        return
    lock = _RemoteLock(target)
    lock.acquire()
    try:
        yield lock.renew
    finally:
        lock.release()


@contextmanager
def _local_lock(path: Path, uri: str) -> Iterator[None]:
    with disk_errors(uri):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise _held(
                uri, f"process {os.pread(descriptor, 100, 0).decode('utf-8', 'replace') or '(unknown)'}"
            ) from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()} on {socket.gethostname()}".encode(), 0)
        yield
    finally:
        os.close(descriptor)


class _RemoteLock:
    def __init__(self, target: Target) -> None:
        self._target = target
        self._token = os.urandom(8).hex()
        self._beat = 0
        self._written_at = 0.0

    def acquire(self) -> None:
        if self._target.create(LOCK, self._content()):
            return
        seen = self._target.read(LOCK)
        if seen is not None and not _is_dead_neighbour(seen):
            deadline = time.monotonic() + _ABANDONED_AFTER_S
            while time.monotonic() < deadline:
                time.sleep(_LOOK_EVERY_S)
                if (now := self._target.read(LOCK)) is None:
                    break
                if now != seen:
                    raise _held(self._target.uri, _owner(now))
        self._write()
        time.sleep(_LOOK_EVERY_S)  # of several that take over at once, the last to write has it
        self._check()

    def renew(self) -> None:
        if time.monotonic() - self._written_at > _RENEW_EVERY_S:
            self._check()
            self._write()

    def release(self) -> None:
        if self._token in _text(self._target.read(LOCK)):
            self._target.delete(LOCK)

    def _check(self) -> None:
        if self._token not in (now := _text(self._target.read(LOCK))):
            raise _held(self._target.uri, _owner(now.encode()))

    def _write(self) -> None:
        self._target.write(LOCK, self._content())

    def _content(self) -> bytes:
        self._beat += 1
        self._written_at = time.monotonic()
        owner = {"token": self._token, "pid": os.getpid(), "host": socket.gethostname(), "beat": self._beat}
        return json.dumps(owner).encode()


def _is_dead_neighbour(content: bytes) -> bool:
    """Return whether the lock is of a process of this machine that is no more."""
    try:
        owner = json.loads(content)
        if owner["host"] != socket.gethostname():
            return False
        os.kill(int(owner["pid"]), 0)
    except ProcessLookupError:
        return True
    except (ValueError, KeyError, TypeError, OSError):
        return False
    return False


def _owner(content: bytes) -> str:
    try:
        owner = json.loads(content)
        return f"process {owner['pid']} on {owner['host']}"
    except (ValueError, KeyError, TypeError):
        return "another process"


def _text(content: bytes | None) -> str:
    return (content or b"").decode("utf-8", "replace")


def _held(uri: str, owner: str) -> PrepareError:
    return PrepareError(f"{uri} is being prepared by {owner}", hint="wait for it, stop it, or choose another folder")
