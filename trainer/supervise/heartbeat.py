"""A sign of life from every rank, and the end of all when one is lost.

A collective whose peer is gone fails with a message about a socket, and one whose peer is stopped waits for half an
hour. So each rank writes a beat to the job's store every second, from a thread. Who is watched by whom:

    every rank   watches rank 0, the ranks of its own machine (are their processes there?), and the verdict
    rank 0       watches all ranks

The first to find a rank lost writes the verdict; each rank that reads it ends, also when its main thread is stuck. A
second thread, which touches no socket, ends the rank when the store itself falls silent.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.supervise.world import World

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

_INTERVAL_S = 1.0


@dataclass(frozen=True)
class Verdict:
    """Which rank was lost, in one line; ``is_first``: this rank found out, and should say it."""

    message: str
    is_first: bool


def announce(store: Store, world: World) -> None:
    """Write who this rank is, for the others to watch."""
    store.set(f"who/{world.rank}", json.dumps({"pid": os.getpid(), "machine": _machine()}))


class Heartbeat:
    """The threads that beat and watch, between ``start`` and ``close``.

    ``store`` is a connection of its own: a blocking call of the main thread must not hold the beat up. ``lost`` is
    called once, from a thread, with the verdict; it ends the process. All ranks must have announced themselves.
    """

    def __init__(self, store: Store, world: World, *, silence_s: float, lost: Callable[[Verdict], None]) -> None:
        self._store = store
        self._world = world
        self._silence_s = silence_s
        self._lost = lost
        self._stopped = threading.Event()
        self._concluded = threading.Lock()
        self._last_answer = time.monotonic()
        self._beats: dict[int, tuple[bytes, float]] = {}
        self._local_pids: dict[int, int] = {}
        self._threads = [
            threading.Thread(target=self._beat_on, name="iostack-heartbeat", daemon=True),
            threading.Thread(target=self._watch_store, name="iostack-heartbeat-watch", daemon=True),
        ]
        self.step = 0
        """The step that this rank finished last: others name it when this rank falls silent."""

    def start(self) -> None:
        keys = [f"who/{rank}" for rank in range(self._world.size)]
        for rank, value in enumerate(self._store.multi_get(keys)):
            known = json.loads(value)
            if known["machine"] == _machine() and rank != self._world.rank:
                self._local_pids[rank] = known["pid"]
        now = time.monotonic()
        self._beats = dict.fromkeys(range(self._world.size) if self._world.rank == 0 else [0], (b"", now))
        self._beats.pop(self._world.rank, None)
        self._last_answer = now
        for thread in self._threads:
            thread.start()

    def fail(self, message: str) -> bool:
        """Tell the other ranks that this one ends, and why; return whether nobody else's end was told before."""
        self._stopped.set()
        with suppress(Exception):  # the store may be what failed
            return bool(self._store.compare_set("verdict", "", message) == message.encode())
        return True

    def wait_for_verdict(self) -> None:
        """Wait for as long as it takes to find a lost rank, after a collective failed; ``lost`` ends the process."""
        self._stopped.wait(self._silence_s + 2 * _INTERVAL_S)

    def close(self) -> None:
        """Stop watching: every rank is about to end well."""
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    def _beat_on(self) -> None:
        count = 0
        while not self._stopped.is_set():
            try:
                count += 1
                self._store.set(f"beat/{self._world.rank}", f"{count} {self.step}")
                self._look()
            except RuntimeError as error:  # all errors of torch's stores
                self._conclude(f"{self._world.store_owner} is gone ({_first_line(error)})")
                return
            self._last_answer = time.monotonic()
            self._stopped.wait(_INTERVAL_S)

    def _watch_store(self) -> None:
        before = time.monotonic()
        while not self._stopped.wait(_INTERVAL_S):
            now = time.monotonic()
            if now - before > self._silence_s / 2:  # this process was stopped itself: start afresh
                self._forgive(now)
            before = now
            if now - self._last_answer > self._silence_s:
                self._conclude(f"{self._world.store_owner} fell silent for {self._silence_s:g} s")
                return

    def _forgive(self, now: float) -> None:
        self._last_answer = now
        self._beats = {rank: (beat, now) for rank, (beat, _) in self._beats.items()}

    def _look(self) -> None:
        """Ask for the verdict, and for the beats of those whom this rank watches."""
        if self._store.check(["verdict"]):
            self._conclude(self._store.get("verdict").decode(), is_first=False)
            return
        for rank, pid in self._local_pids.items():
            if _is_dead(pid):
                self._find(f"rank {rank} (process {pid}) died")
                return
        keys = {rank: f"beat/{rank}" for rank in self._beats}
        there = {rank: key for rank, key in keys.items() if self._beats[rank][0] or self._store.check([key])}
        beats = self._store.multi_get(list(there.values())) if there else []
        now = time.monotonic()
        for rank, beat in zip(there, beats, strict=True):
            if beat != self._beats[rank][0]:
                self._beats[rank] = (beat, now)
        for rank, (beat, since) in self._beats.items():
            if now - since > self._silence_s:
                step = beat.decode().partition(" ")[2] or "0"
                self._find(f"rank {rank} fell silent for {self._silence_s:g} s after step {step}")
                return

    def _find(self, message: str) -> None:
        """Write the verdict, unless somebody was faster."""
        if self._stopped.is_set():
            return
        told = self._store.compare_set("verdict", "", message).decode()
        self._conclude(told, is_first=told == message)

    def _conclude(self, message: str, *, is_first: bool = True) -> None:
        if not self._stopped.is_set() and self._concluded.acquire(blocking=False):
            self._lost(Verdict(message, is_first))


def _machine() -> str:
    """Name the machine and its space of process ids."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + os.readlink("/proc/self/ns/pid")
    except OSError:
        return os.uname().nodename


def _is_dead(pid: int) -> bool:
    """Whether a process of this machine has ended, reaped or not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0]
    except OSError:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        return False
    return state in (b"Z", b"X")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
