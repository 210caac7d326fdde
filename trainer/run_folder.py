"""The folder of one training run, and the lock that keeps a second run out of it.

    RUN_DIR/
        settings.toml       the settings of the last start, without credentials
        metrics.jsonl       one line per step
        evaluation.jsonl    one line per evaluation
        checkpoints/        see trainer.checkpoint
        .lock               who runs here; the lock itself is the kernel's, so that no lock outlives its processes

A launcher locks the folder and its ranks inherit the lock: it opens when the last of them is gone.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from iostack.errors import CheckpointError, RunError, RunLockedError
from trainer.settings.secrets import without_secrets
from trainer.settings.show import to_toml

_GRACE_S = 10.0
"""How long a lock may outlive the process that took it, while the kernel and its ranks wind up after a SIGKILL."""


class RunFolder:
    """An open, locked run folder; use it as a context manager, or ``close`` it.

    Opening creates the folder. Closing removes it again if nothing was written to it, so that a run that could not
    start leaves nothing behind.

    Raises:
        RunLockedError: another run holds the folder; names its process and machine.
        RunError: the folder cannot be created or written.
    """

    def __init__(self, path: Path, *, lock_fd: int | None = None) -> None:
        """Open and lock ``path``, or take over a lock that a launcher holds."""
        self.path = path.absolute()
        self._is_new = not path.exists() and lock_fd is None
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.lock_fd = _lock(self.path / ".lock") if lock_fd is None else lock_fd
        except OSError as error:
            raise RunError(
                f"run folder {str(path)!r} cannot be used: {error.strerror}", hint="choose another with --run-dir"
            ) from error

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def evaluations(self) -> Path:
        return self.path / "evaluation.jsonl"

    @property
    def checkpoints(self) -> str:
        return str(self.path / "checkpoints")

    def write_settings(self, values: dict[str, Any]) -> None:
        """Replace ``settings.toml``, all or nothing."""
        header = "# Settings of the last start of this run. Options of the storage are left out: they may hold credentials.\n"
        temporary = self.path / f".settings.{os.getpid()}"
        temporary.write_text(header + to_toml(values), encoding="utf-8")
        temporary.replace(self.path / "settings.toml")

    def close(self) -> None:
        """Give the lock back; processes that inherited it still hold it."""
        if self._is_new and {entry.name for entry in self.path.iterdir()} == {".lock"}:
            (self.path / ".lock").unlink()
            self.path.rmdir()
        os.close(self.lock_fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _lock(path: Path) -> int:
    """Return a file descriptor that holds the lock on ``path``."""
    deadline = time.monotonic() + _GRACE_S
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _read_holder(path)
            os.close(fd)
            if time.monotonic() >= deadline or not _is_gone(holder):
                raise RunLockedError(
                    f"run folder {str(path.parent)!r} is in use by process {holder.get('pid', '?')}"
                    f" on {holder.get('host', '?')}",
                    hint="wait for it, stop it, or choose another folder with --run-dir",
                ) from None
            time.sleep(0.05)
            continue
        # The run before us may have removed the file between our open and our lock.
        if _same_file(fd, path):
            os.ftruncate(fd, 0)
            os.pwrite(fd, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode(), 0)
            return fd
        os.close(fd)


def _same_file(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False


def _read_holder(path: Path) -> dict[str, Any]:
    try:
        holder = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return holder if isinstance(holder, dict) else {}


def _is_gone(holder: dict[str, Any]) -> bool:
    """Whether the process that took the lock has ended: its ranks, which inherited the lock, are about to."""
    if holder.get("host") != socket.gethostname() or not isinstance(holder.get("pid"), int):
        return not holder
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def refuse_changes(saved: dict[str, Any], now: dict[str, Any], *, where: str) -> None:
    """Refuse to resume with settings that decide what the model is or which samples it sees.

    ``saved`` and ``now`` are plain settings; those in a checkpoint may be anybody's. Secrets may change. The loader's
    own state guards the corpus itself.

    Raises:
        RunError: names the first setting that changed, with both values.
        CheckpointError: ``saved`` are not the settings of a run.
    """
    saved = without_secrets(saved, replacement=None)
    for section, is_fixed in _FIXED.items():
        before, after = saved.get(section, {}), now.get(section, {})
        if not isinstance(before, dict):
            raise CheckpointError(f"settings.{section} in {where} is a {type(before).__name__}, not a table")
        for key in sorted({*before, *after}):
            if is_fixed(key) and before.get(key) != after.get(key):
                raise RunError(
                    f"{section}.{key} is {_spell(before, key)} in {where}, and {_spell(after, key)} now:"
                    " a run cannot change it",
                    hint="set it back, or start another run with --run-dir",
                )


def _spell(section: dict[str, Any], key: str) -> str:
    return json.dumps(section[key]) if key in section else "not set"


_ORDER = frozenset({"seq_len", "seed", "tokenizer", "text_column", "transforms", "window", "vocab_size"})
_FIXED: dict[str, Callable[[str], bool]] = {"model": lambda key: True, "data": _ORDER.__contains__}
