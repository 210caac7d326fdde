"""Worker processes: each task is done by one of them, again where that one died.

    a thread of the loader ──do(task)──> free seat of the least busy worker ──> result
                                           │ the worker died
                                           ├── while a sample was at work: the third time, that sample is bad
                                           ├── while rows were read: again, one row at a time
                                           └── otherwise: the third time, an error that names the task

A worker has two seats, so that its next task lies there when it has finished one; the thread that sent it may come late.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from iostack import logs
from iostack.errors import IostackError, PluginError
from iostack.forks import renew_in_children
from iostack.loader.workers.messages import Request, Status, Ticket, read, rebuild
from iostack.loader.workers.notes import Note, Phase, Place
from iostack.loader.workers.process import Process, Seat, TooSlow, WorkerDied
from iostack.loader.workers.slots import anonymous_memory

log = logs.logger("iostack.loader")

SEATS = 2
_MOST_DEATHS = 3
_MOST_DEATHS_BESIDE = 60
"""A task sees ``_MOST_DEATHS`` for each sample that kills, of the tasks with which it shares its worker."""
_AT_ANOTHER: Place = (-1, -1, -1)
_WARN_SHARE = 0.1
_SEAT_WAIT_S = 1.0


class Pool:
    """Up to ``number`` workers, started by the tasks that need them. Thread-safe, but for ``start`` and ``stop``.

    ``begin`` and ``setup`` say what does the tasks, see ``worker.main``. ``name`` names a sample. A sample that is
    transformed for longer than ``timeout_s`` is bad.
    """

    def __init__(
        self, number: int, *, begin: str, setup: bytes, name: Callable[[Place], str], timeout_s: float
    ) -> None:
        self._begin = begin
        self._setup = setup
        self._number = number
        self._name = name
        self._timeout_s = timeout_s
        self._refused: dict[Place, str] = {}
        self._tasks = itertools.count(1)
        self._changed = threading.Condition()
        self._is_running = False
        self._workers: list[Process | None] = [None] * number
        self._free: list[list[int]] = []
        self._starting = [threading.Lock() for _ in range(number)]
        renew_in_children(self)

    @property
    def num_seats(self) -> int:
        """How many tasks they take at a time."""
        return SEATS * self._number

    @property
    def pids(self) -> list[int]:
        """The process ids of the workers that run now."""
        return [worker.pid for worker in list(self._workers) if worker is not None]

    def start(self) -> None:
        """Take tasks from now on."""
        with self._changed:
            self._is_running = True
            self._free = [list(range(SEATS)) for _ in range(self._number)]

    def stop(self) -> None:
        """Kill the workers and wait until they are gone; tasks under way, and later ones, raise ``_Stopped``."""
        with self._changed:
            self._is_running = False
            self._changed.notify_all()
        for index in range(self._number):
            with self._starting[index]:  # nobody starts one after this
                worker = self._workers[index]
            if worker is not None:
                worker.close()
                self._workers[index] = None

    def renew_after_fork(self) -> None:
        """Leave the workers to the parent; a forked child starts its own."""
        self._changed = threading.Condition()
        self._starting = [threading.Lock() for _ in range(self._number)]
        self._is_running = False
        for worker in self._workers:
            if worker is not None:
                worker.disown()
        self._workers = [None] * self._number

    def do(self, task: Any, *, patience_s: float) -> Any:
        """Return the result of a task; it must pickle, and ``str(task)`` names it.

        ``patience_s`` is how long a worker may stay at anything but a single sample.

        Raises:
            IostackError: what the task raised, or that it kills every worker.
        """
        number = next(self._tasks)
        deaths: Counter[Place | None] = Counter()
        is_careful = False
        while True:
            index, number_of_seat = self._take_seat(task)
            worker = None
            try:
                worker = self._worker(index)
                with worker.sitting(number_of_seat) as seat:
                    request = Request(task, dict(self._refused), is_careful)
                    ticket = worker.ask(seat, number, request, self._patience(patience_s))
                    return self._received(task, seat, ticket)
            except WorkerDied as death:
                self._forget(index, worker)
                died = death
            finally:
                self._leave_seat(index, number_of_seat)
            if not self._is_running:
                raise _Stopped(f"{task}: the loader was closed")
            is_careful = self._blame(task, died, deaths) or is_careful

    def _received(self, task: Any, seat: Seat, ticket: Ticket) -> Any:
        try:
            value = read(seat.slot, ticket)
        except IostackError:
            raise
        except Exception as error:
            raise PluginError(
                f"what a worker process gave for {task} cannot be rebuilt: {type(error).__name__}: {error}",
                hint="let the transforms return numbers, text, bytes, arrays, tensors, and lists and dicts of these",
            ) from error
        seat.slot.shrink()
        if ticket.status == Status.ERROR:
            raise rebuild(value)
        return value

    def _blame(self, task: Any, death: WorkerDied, deaths: Counter[Place | None]) -> bool:
        """Decide what follows from a death; return whether rows must be read one at a time from now on.

        Raises:
            PluginError: the task kills workers, and no sample of it can be told to be the one.
        """
        place = death.note.place if death.note else (-1, -1, -1)
        if death.was_at_another and not death.is_slow:
            deaths[_AT_ANOTHER] += 1
            what, where = str(task), "before"
        elif place[2] < 0 or place in self._refused:
            deaths[None] += 1
            what, where = str(task), "at"
        else:
            deaths[place] += 1
            what, where = self._name(place), "at"
            if death.is_slow or deaths[place] >= _MOST_DEATHS:
                self._refused[place] = f"its worker process {death.how}, {deaths[place]} times in a row"
                return True
        log.warning("a worker process %s %s %s: another one takes over", death.how, where, what)
        if deaths[None] > _MOST_DEATHS or deaths[_AT_ANOTHER] > _MOST_DEATHS_BESIDE:
            raise PluginError(
                f"{what}: its worker process {death.how}, {deaths[None] + deaths[_AT_ANOTHER]} times in a row",
                hint="look at what the transforms call; workers=0 shows it in this process",
            )
        return death.note is not None and death.note.phase == Phase.READING

    def _patience(self, others_s: float) -> Callable[[Note | None], None]:
        """Return what has a worker killed that takes too long at one sample, or at the reading around it."""
        began = time.monotonic()
        warned: set[Place] = set()

        def patience(note: Note | None) -> None:
            if not self._is_running:
                raise TooSlow("is not needed any more")
            if note is None:  # the worker is still at the task before this one
                if time.monotonic() - began > 2 * others_s + SEATS * self._timeout_s:
                    raise TooSlow("did not begin")
                return
            spent_s = time.monotonic() - note.since
            if spent_s > (self._timeout_s if note.phase == Phase.TRANSFORMING else others_s):
                raise TooSlow(f"took more than {spent_s:.0f} s")
            if note.phase == Phase.TRANSFORMING and spent_s > _WARN_SHARE * self._timeout_s:
                if note.place not in warned:
                    log.warning("%s: its transforms have taken %.1f s so far", self._name(note.place), spent_s)
                warned.add(note.place)

        return patience

    def _take_seat(self, task: Any) -> tuple[int, int]:
        with self._changed:
            while self._is_running:
                index = max(range(self._number), key=lambda index: len(self._free[index]))
                if self._free[index]:
                    return index, self._free[index].pop(0)
                self._changed.wait(_SEAT_WAIT_S)  # who sits there has patience, and an end to it
        raise _Stopped(f"{task}: the loader was closed")

    def _leave_seat(self, index: int, seat: int) -> None:
        with self._changed:
            self._free[index].append(seat)
            self._changed.notify_all()

    def _worker(self, index: int) -> Process:
        with self._starting[index]:
            worker = self._workers[index]
            if worker is None:
                if not self._is_running:
                    raise _Stopped("the loader was closed")
                setup = anonymous_memory()
                try:
                    with open(setup, "wb", closefd=False) as file:
                        file.write(self._setup)
                    worker = self._workers[index] = Process(self._begin, setup, SEATS)
                finally:
                    os.close(setup)
            return worker

    def _forget(self, index: int, dead: Process | None) -> None:
        """Make room for a new worker."""
        with self._starting[index]:
            if self._workers[index] is dead:
                self._workers[index] = None


class _Stopped(IostackError):
    """The loader was closed while a task was under way; nobody waits for it any more."""
