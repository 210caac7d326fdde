"""Training runs for tests: tiny ones, in real processes, which end with the test that started them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

SETTINGS = """
[data]
seq_len = 16
batch_size = 8
lanes = 4
[model]
dim = 32
layers = 2
heads = 2
[train]
steps = 60
warmup_steps = 5
learning_rate = 1e-2
threads = 1
silence_s = 8.0
[checkpoint]
every = 7
"""
IOSTACK = [sys.executable, "-c", "import sys; from iostack.cli import main; sys.exit(main())", "train"]
_TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "1", "--rdzv-backend", "c10d"]
_DEADLINE_S = 85.0


def write_corpus(folder: Path, *, shards: int = 4, rows: int = 60) -> Path:
    """Write text as JSONL: enough for many more steps than a test makes."""
    folder.mkdir(parents=True)
    for shard in range(shards):
        lines = [
            json.dumps({"text": f"shard {shard} row {row}: " + "lorem ipsum dolor sit amet " * (row % 5)})
            for row in range(rows)
        ]
        (folder / f"part-{shard}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def wait_until(condition: Callable[[], bool], what: str, *, timeout_s: float = _DEADLINE_S) -> None:
    """Wait for a real condition; an AssertionError that names it when time is up."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_s:g} s for {what}"
        threading.Event().wait(0.005)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the whole lines of a file of JSON objects, none if it is not there yet."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]


def is_gone(pid: int) -> bool:
    """Whether a process has ended, reaped or not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


@dataclass
class Run:
    """A run folder and the command that trains in it."""

    corpus: Path | None
    settings: Path
    folder: Path

    @property
    def metrics(self) -> list[dict[str, Any]]:
        return read_lines(self.folder / "metrics.jsonl")

    @property
    def steps(self) -> int:
        """Lines of metrics so far."""
        path = self.folder / "metrics.jsonl"
        return path.read_bytes().count(b"\n") if path.exists() else 0

    def start(self, *arguments: str, procs: int = 1, torchrun: bool = False, **environment: str) -> Process:
        """Start training; use the result as a context manager."""
        tail = [
            *([str(self.corpus)] if self.corpus else []),
            "-c",
            str(self.settings),
            "--run-dir",
            str(self.folder),
            *arguments,
        ]
        if torchrun:
            command = [*_TORCHRUN, "--rdzv-endpoint", "127.0.0.1:0", "--nproc-per-node", str(procs), "-m", "trainer"]
            return Process([*command, *tail], environment)
        return Process([*IOSTACK, *tail, *(["--procs", str(procs)] if procs > 1 else [])], environment)

    def train(self, *arguments: str, procs: int = 1, torchrun: bool = False, **environment: str) -> Ended:
        """Train to the end."""
        with self.start(*arguments, procs=procs, torchrun=torchrun, **environment) as process:
            return process.wait()


@dataclass
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        """The lines that say what was wrong."""
        return [line for line in self.err.splitlines() if line.startswith("error:")]


class Process:
    """A started command, and all that it starts; leaving the context ends what is left of it."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self._popen = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "NO_COLOR": "1", **environment},
        )
        self._known: set[int] = {self._popen.pid}

    @property
    def pid(self) -> int:
        return self._popen.pid

    def ranks(self) -> list[int]:
        """Return the processes of the ranks, in their order; of a run of one process, that process."""
        found = sorted(self._children(self.pid))
        self._known.update(found)
        return found or [self.pid]

    def kill(self, *pids: int, number: int = signal.SIGKILL) -> None:
        """Send a signal to processes of this run."""
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def has_ended(self) -> bool:
        return self._popen.poll() is not None

    def wait(self) -> Ended:
        """Wait for the end, and return it."""
        out, err = self._popen.communicate(timeout=_DEADLINE_S)
        return Ended(self._popen.returncode, out, err)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.ranks()
        if not self.has_ended():
            self._popen.kill()
            self._popen.wait()
        for pid in self._known - {self.pid}:
            if not is_gone(pid) and b"trainer" in _command_line(pid):
                self.kill(pid)
        for stream in (self._popen.stdout, self._popen.stderr):
            if stream:
                stream.close()

    @staticmethod
    def _children(pid: int) -> Iterator[int]:
        for task in Path(f"/proc/{pid}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                for child in task.read_text().split():
                    if b"trainer" in _command_line(int(child)):
                        yield int(child)


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
