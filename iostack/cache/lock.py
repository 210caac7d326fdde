"""One process per object: a lock file beside it, and a wait that watches the owner's progress."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from iostack.errors import OriginError
from iostack.stopping import refuse_if_stopped

_POLL_S = 0.05


@contextmanager
def fill_lock(target: Path, *, waits_for: str, patience_s: float) -> Iterator[None]:
    """Hold the right to fill ``target``; it goes with the process, so a killed one never blocks the others.

    Waiting lasts as long as the owner's ``.part`` files keep growing.

    Raises:
        OriginError: nothing grew for ``patience_s``; names ``waits_for`` and the owner.
    """
    descriptor = _acquire(target, waits_for, patience_s)
    try:
        yield
    finally:
        # Unlinked while held: whoever opened it before sees in _try_lock that its file is no longer the one in place.
        _lock_file(target).unlink(missing_ok=True)
        os.close(descriptor)


def sweep(folder: Path) -> int:
    """Remove the ``.part`` files below ``folder`` that no living process fills; return how many."""
    removed = 0
    for part in folder.glob("*/*.part"):
        target = part.with_name(part.name.split(".")[0])
        if (descriptor := _try_lock(target)) is not None:
            part.unlink(missing_ok=True)
            _lock_file(target).unlink(missing_ok=True)
            os.close(descriptor)
            removed += 1
    return removed


def _lock_file(target: Path) -> Path:
    return target.with_suffix(".lock")


def _acquire(target: Path, waits_for: str, patience_s: float) -> int:
    seen, deadline = -1, time.monotonic() + patience_s
    while (descriptor := _try_lock(target)) is None:
        refuse_if_stopped()
        if (progress := _filled_bytes(target)) != seen:
            seen, deadline = progress, time.monotonic() + patience_s
        elif time.monotonic() > deadline:
            raise OriginError(
                f"waited {patience_s:g} s without progress for process {_owner(target)} to fetch {waits_for}",
                hint="stop that process, or use another --cache-dir",
            )
        time.sleep(_POLL_S)
    return descriptor


def _try_lock(target: Path) -> int | None:
    path = _lock_file(target)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        held, in_place = os.fstat(descriptor), os.stat(path)
        if (held.st_dev, held.st_ino) == (in_place.st_dev, in_place.st_ino):
            os.ftruncate(descriptor, 0)
            os.write(descriptor, str(os.getpid()).encode())
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(descriptor)
    return None


def _filled_bytes(target: Path) -> int:
    total = 0
    for suffix in (".part", ".fetch.part"):
        try:
            total += target.with_suffix(suffix).stat().st_size
        except FileNotFoundError:
            continue
    return total


def _owner(target: Path) -> str:
    try:
        return _lock_file(target).read_text() or "(unknown)"
    except OSError:
        return "(unknown)"
