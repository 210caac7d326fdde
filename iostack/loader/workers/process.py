"""One worker process as its parent sees it.

    spawn ──> starting ──READY──> serving ──ask──> result
                 │                   │ died, or killed: too slow, or its pool has stopped
                 └─ died, ERROR ─────┴──> WorkerDied, with the sample that it was at

It is a fresh interpreter: never a fork, so threads and clients of the parent cannot be caught half-way, and never the
user's script again. It has stdin from nowhere, the parent's stdout and stderr, its own process group (a terminal's Ctrl-C
is for the parent), and of all descriptors only those made for it.
"""

from __future__ import annotations

import json
import mmap
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from iostack import logs
from iostack.errors import PluginError
from iostack.loader.workers.messages import Request, Status, Ticket, read, rebuild, receive, send, write
from iostack.loader.workers.notes import NOTE_BYTES, Note, read_note
from iostack.loader.workers.slots import Slot, anonymous_memory

log = logs.logger("iostack.loader")

_PROGRAM = (
    "import sys, json; path, arguments = map(json.loads, sys.argv[1:]); sys.path[:] = path;"
    " from iostack.loader.workers.worker import main; main(*arguments)"
)
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
"""Workers are the parallelism: libraries in them that start a thread per core only get in each other's way."""

_LOOK_EVERY_S = 0.5
_START_S = 120.0
_REAP_S = 5.0


class WorkerDied(Exception):
    """A worker is gone; ``how`` says what became of it, ``note`` what it was at, None if that was not this task.

    ``is_slow``: it was killed because this task took too long. ``was_at_another``: it was at a task of its other seat.
    """

    def __init__(self, how: str, note: Note | None) -> None:
        super().__init__(how)
        self.how = how
        self.note = note
        self.is_slow = False
        self.was_at_another = False


class TooSlow(Exception):
    """What ``patience`` raises to have a worker killed."""


class Seat:
    """A way to one worker: its socket and slot. One thread sits on it at a time."""

    def __init__(self) -> None:
        self.connection, self.far = socket.socketpair()
        self.slot = Slot(anonymous_memory())
        self.is_ready = False

    def close(self) -> None:
        """Let go of it."""
        self.connection.close()
        self.far.close()
        self.slot.close()


class Process:
    """A worker with some seats, started by the constructor; see ``worker.main`` for ``begin`` and ``setup``.

    On Linux it dies with the thread that made it, which must be one that lives as long as the worker is wanted.
    """

    def __init__(self, begin: str, setup: int, num_seats: int) -> None:
        self.seats = [Seat() for _ in range(num_seats)]
        self._lock = threading.Lock()
        self._told = ""
        self._is_dead = False
        self._taken: set[int] = set()
        note = anonymous_memory()
        try:
            os.ftruncate(note, NOTE_BYTES)
            self._page = mmap.mmap(note, NOTE_BYTES)
            passed = [setup, note, *(each for s in self.seats for each in (s.far.fileno(), s.slot.descriptor))]
            arguments = [os.getpid(), begin, setup, note, [(s.far.fileno(), s.slot.descriptor) for s in self.seats]]
            self._process = subprocess.Popen(
                [sys.executable, *_flags(), "-c", _PROGRAM, json.dumps(sys.path), json.dumps(arguments)],
                stdin=subprocess.DEVNULL,
                pass_fds=passed,
                start_new_session=True,
                env=dict.fromkeys(_ONE_THREAD, "1") | dict(os.environ),
            )
        except BaseException:
            for seat in self.seats:
                seat.close()
            raise
        finally:
            os.close(note)
        for seat in self.seats:
            seat.far.close()
        self.started = time.monotonic()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @contextmanager
    def sitting(self, number: int) -> Iterator[Seat]:
        """Give one seat to the calling thread for the time inside; the last to leave a dead worker closes the seats.

        Raises:
            WorkerDied: it is gone already.
        """
        with self._lock:
            if self._is_dead:
                raise WorkerDied("had ended", None)
            self._taken.add(number)
        try:
            yield self.seats[number]
        finally:
            with self._lock:
                self._taken.discard(number)
                self._close_seats()

    def ask(self, seat: Seat, task: int, request: Request, patience: Callable[[Note | None], None]) -> Ticket:
        """Have a request done; return the ticket of the result, which stands in the seat's slot.

        ``patience`` is called now and then with what the worker is at, if that is this task.

        Raises:
            WorkerDied: it is gone; it has been reaped.
        """
        if not seat.is_ready:
            self._wait_until_ready(seat)
        ticket = write(seat.slot, task, Status.TASK, request)
        try:
            send(seat.connection, ticket)
        except OSError:
            raise self._death(task) from None
        return self._wait(seat, task, patience)

    def _wait_until_ready(self, seat: Seat) -> None:
        def patience(note: Note | None) -> None:
            if time.monotonic() - self.started > _START_S:
                raise TooSlow(f"did not start in {_START_S:.0f} s")

        ticket = self._wait(seat, 0, patience)
        if ticket.status == Status.ERROR:
            raise rebuild(read(seat.slot, ticket))
        seat.is_ready = True

    def _wait(self, seat: Seat, task: int, patience: Callable[[Note | None], None]) -> Ticket:
        poller = select.poll()
        poller.register(seat.connection, select.POLLIN)
        while True:
            if poller.poll(_LOOK_EVERY_S * 1000):
                if (ticket := receive(seat.connection)) is None:
                    raise self._death(task)
                if ticket.task != task:
                    raise PluginError(f"worker process {self.pid} answered task {ticket.task} instead of {task}")
                return ticket
            # A forked child of this process may hold the other end open, so the end of the stream is not all there is.
            if self._has_ended():
                raise self._death(task)
            try:
                patience(self._note(task))
            except TooSlow as slow:
                if poller.poll(0):  # it has just answered, and is at no task any more
                    continue
                self.kill(str(slow))
                death = self._death(task)
                death.is_slow = True
                raise death from None

    def _note(self, task: int) -> Note | None:
        note = read_note(self._page)
        return note if note is not None and note.task == task else None

    def _death(self, task: int) -> WorkerDied:
        code = self._reap()
        note = self._note(task)
        if self._told:
            how = f"was killed, since it {self._told}"
        elif code is None:
            how = "closed its socket"
        else:
            how = f"was killed by {_signal(-code)}" if code < 0 else f"ended with exit code {code}"
        death = WorkerDied(how, note)
        death.was_at_another = note is None and read_note(self._page) is not None
        return death

    def _reap(self) -> int | None:
        """Return its exit code once it is gone, None if it does not go."""
        with self._lock:
            self._is_dead = True
            self._kill_group()
            try:
                return self._process.wait(_REAP_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                log.warning("worker process %d did not end in %g s and is left behind", self.pid, _REAP_S)
                return None

    def _has_ended(self) -> bool:
        """Return whether it has; it is not reaped, so that its number stays that of its group."""
        if self._process.returncode is not None or not hasattr(os, "waitid"):  # as on macOS before Python 3.13
            return self._process.poll() is not None
        try:
            return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        except ChildProcessError:  # where SIGCHLD is ignored, the kernel has reaped it
            return True

    def _close_seats(self) -> None:
        if self._is_dead and not self._taken:
            for seat in self.seats:
                seat.close()
            self.seats.clear()

    def kill(self, why: str) -> None:
        """Kill it now; whoever waits for it meets ``WorkerDied``."""
        self._told = self._told or why
        self._kill_group()

    def _kill_group(self) -> None:
        """Kill it with what transforms have started in it; nothing once it was reaped, for its number may be another's."""
        if self._process.returncode is None:
            with suppress(ProcessLookupError, PermissionError):  # it has just gone
                os.killpg(self.pid, signal.SIGKILL)

    def disown(self) -> None:
        """Let go of it in a forked child, which is not its parent."""
        self._process.returncode = 0
        for seat in self.seats:
            seat.close()
        self.seats.clear()

    def close(self) -> None:
        """Kill it and wait until it is gone."""
        self.kill("is not needed any more")
        self._reap()
        with self._lock:
            self._close_seats()


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _flags() -> list[str]:
    """Return the options of this interpreter that its children should have too, as ``multiprocessing`` does."""
    return subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined,no-any-return]
