"""What runs in a worker process: tasks come over its seats, one result goes back for each, until its parent is gone.

It imports no torch, unless a transform does: that would take 1.5 s of CPU in each. A SIGINT is its parent's business. It
ends when its parent does, however that ends: the kernel kills it (Linux), or its sockets say so.
"""

from __future__ import annotations

import ctypes
import importlib
import mmap
import os
import select
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from iostack.errors import PluginError
from iostack.loader.workers.messages import Request, Status, Ticket, failure, read, receive, send, write
from iostack.loader.workers.notes import NOTE_BYTES, Notes
from iostack.loader.workers.slots import Slot

Do = Callable[[Any], Any]
"""Does one task."""

_PR_SET_PDEATHSIG = 1


def main(parent: int, begin: str, setup: int, note: int, seats: Sequence[tuple[int, int]]) -> None:
    """Serve the seats until the parent has gone.

    ``begin`` names the function, as ``module:name``, that makes of the setup and the notes what does the tasks. The rest are
    descriptors: of the setup, of the page of notes, and of the (socket, slot) of each seat.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a transform prints must not end up in somebody's data
    _die_with(parent)
    connections = {connection: (socket.socket(fileno=connection), Slot(slot)) for connection, slot in seats}
    notes = Notes(mmap.mmap(note, NOTE_BYTES))
    do = _begun(begin, setup, notes, list(connections.values()))
    if do is None:
        return
    poller = select.poll()
    for descriptor in connections:
        poller.register(descriptor, select.POLLIN)
    while True:
        for descriptor, _ in poller.poll():
            connection, slot = connections[descriptor]
            ticket = receive(connection)
            if ticket is None:
                return
            send(connection, _answer(do, notes, slot, ticket))
            notes.stop()


def _die_with(parent: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it went before the kernel knew
        os._exit(0)


def _begun(begin: str, setup: int, notes: Notes, seats: Sequence[tuple[socket.socket, Slot]]) -> Do | None:
    """Return what does the tasks, having told on every seat that it is ready, or why it is not."""
    try:
        module, _, name = begin.partition(":")
        do: Do = getattr(importlib.import_module(module), name)(_read_all(setup), notes)
    except BaseException as error:  # noqa: BLE001 - the parent raises it
        for connection, slot in seats:
            told = failure("a worker process cannot start", error, traceback.format_exc())
            send(connection, write(slot, 0, Status.ERROR, told))
        return None
    for connection, _ in seats:
        send(connection, Ticket(0, Status.READY))
    return do


def _read_all(descriptor: int) -> bytes:
    data = os.pread(descriptor, size := os.fstat(descriptor).st_size, 0)
    while len(data) < size:
        data += os.pread(descriptor, size - len(data), len(data))
    os.close(descriptor)
    return data


def _answer(do: Do, notes: Notes, slot: Slot, ticket: Ticket) -> Ticket:
    task: Any = None
    try:
        request: Request = read(slot, ticket)
        task = request.task
        notes.start(ticket.task, request.refused, is_careful=request.is_careful)
        return _written(slot, ticket.task, do(request.task))
    except BaseException as error:  # noqa: BLE001 - the parent raises it where the result is awaited
        told = failure(str(task), error, "".join(traceback.format_exception(error)))
        return write(slot, ticket.task, Status.ERROR, told)


def _written(slot: Slot, task: int, result: Any) -> Ticket:
    try:
        return write(slot, task, Status.RESULT, result)
    except OSError:
        raise
    except Exception as error:
        raise PluginError(
            f"the samples hold what cannot leave a worker process: {type(error).__name__}: {error}",
            hint="let the transforms return numbers, text, bytes, arrays, tensors, and lists and dicts of these",
        ) from error
