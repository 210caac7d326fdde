"""What parent and worker tell each other: fixed tickets over a socket, all else in the slot that goes with it.

    slot: [pickle | buffer | buffer | ... | table of (start, bytes) of the buffers]     ticket: (task, status, sizes)

Our own values are pickled by us, arrays beside the pickle as raw buffers. What stands in a sample came from foreign bytes
but is pickled here as the plain objects that readers and transforms made of it, so those bytes never choose what
unpickling does. Errors travel as ours: a foreign exception may not be picklable, or not be rebuilt where it arrives.
"""

from __future__ import annotations

import io
import pickle
import socket
import struct
import sys
from collections.abc import Mapping
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from iostack import errors
from iostack.errors import IostackError, PluginError, SampleError
from iostack.loader.workers.notes import Place
from iostack.loader.workers.slots import SMALL_BYTES, Slot

_TICKET = struct.Struct("<QQQQQ")
_PLACE = struct.Struct("<qq")
"""Of a buffer: its start and its bytes."""


class Status(IntEnum):
    """What a ticket announces."""

    READY = 0
    TASK = 1
    RESULT = 2
    ERROR = 3


class Request(NamedTuple):
    """One task; ``refused`` samples are bad, and why; ``is_careful``: rows are read one at a time."""

    task: Any
    refused: Mapping[Place, str]
    is_careful: bool


class Ticket(NamedTuple):
    """One message; what it announces stands in the slot: a pickle, and a table of buffers from ``table_start`` on."""

    task: int
    status: int
    pickle_bytes: int = 0
    table_start: int = 0
    num_buffers: int = 0


def send(connection: socket.socket, ticket: Ticket) -> None:
    """Send a ticket; the socket's buffer holds it, so this never waits."""
    connection.sendall(_TICKET.pack(*ticket))


def receive(connection: socket.socket) -> Ticket | None:
    """Return the next ticket, or None where the other side has gone."""
    try:
        data = connection.recv(_TICKET.size, socket.MSG_WAITALL)
    except ConnectionError:
        return None
    return Ticket(*_TICKET.unpack(data)) if len(data) == _TICKET.size else None


def write(slot: Slot, task: int, status: Status, value: Any) -> Ticket:
    """Write a value to the slot and return its ticket.

    Raises:
        Exception: pickle's own errors, for a value that cannot be pickled.
    """
    buffers: list[pickle.PickleBuffer] = []
    if status == Status.TASK:  # without errors or tensors: asking each value what it is takes longer than pickling it
        pickled = pickle.dumps(value, 5, buffer_callback=buffers.append)
    else:
        file = io.BytesIO()
        _Pickler(file, 5, buffer_callback=buffers.append).dump(value)
        pickled = file.getvalue()
    raws = [buffer.raw() for buffer in buffers]
    table, position = bytearray(), len(pickled)
    for raw in raws:
        table += _PLACE.pack(position, raw.nbytes)
        position += raw.nbytes
    slot.write([pickled, *raws, bytes(table)])
    return Ticket(task, status, len(pickled), position, len(raws))


def read(slot: Slot, ticket: Ticket) -> Any:
    """Return the value that a ticket announces; its arrays are fresh memory.

    Raises:
        Exception: it cannot be rebuilt here.
    """
    end = ticket.table_start + _PLACE.size * ticket.num_buffers
    read = slot.read
    if end <= SMALL_BYTES:
        whole = slot.read(0, end)

        def read(start: int, num_bytes: int) -> NDArray[np.uint8]:
            return whole[start : start + num_bytes]

    table = read(ticket.table_start, _PLACE.size * ticket.num_buffers).tobytes()
    buffers = [read(start, num_bytes) for start, num_bytes in _PLACE.iter_unpack(table)]
    return pickle.loads(read(0, ticket.pickle_bytes).data, buffers=buffers)


class _Pickler(pickle.Pickler):
    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, Exception):
            return _rebuild_error, told(value)
        torch = sys.modules.get("torch")  # nobody has a tensor before it is imported
        if torch is not None and isinstance(value, torch.Tensor):
            flat = value.detach().cpu().contiguous().reshape(-1)
            return _rebuild_tensor, (_bytes_of(flat), str(value.dtype).removeprefix("torch."), tuple(value.shape))
        return NotImplemented


def _bytes_of(flat: Any) -> NDArray[np.uint8]:
    as_bytes: NDArray[np.uint8] = flat.view(sys.modules["torch"].uint8).numpy()
    return as_bytes


def _rebuild_tensor(data: NDArray[np.uint8], dtype: str, shape: tuple[int, ...]) -> Any:
    import torch

    return torch.from_numpy(data).view(getattr(torch, dtype)).reshape(shape)


Told = tuple[str, str, str, str]
"""An error: the name of its class among ours, its message, its hint, and where it was raised."""


def told(error: BaseException, traceback: str = "") -> Told:
    """Return an error as text; one that is not ours becomes the error of a sample."""
    kind = type(error).__name__
    if isinstance(error, IostackError) and getattr(errors, kind, None) is type(error):
        return kind, error.message, error.hint, traceback
    if isinstance(error, IostackError):
        return next(k.__name__ for k in type(error).__mro__ if hasattr(errors, k.__name__)), *_text(error), traceback
    return SampleError.__name__, str(error), "", traceback


def _text(error: IostackError) -> tuple[str, str]:
    return error.message, error.hint


def failure(task: str, error: BaseException, traceback: str) -> Told:
    """Return what made a task fail, as text; an error that is not ours keeps its type in the message."""
    if isinstance(error, IostackError):
        return told(error, traceback)
    return PluginError.__name__, f"{task}: {type(error).__name__}: {error}", "", traceback


def rebuild(failed: Told) -> IostackError:
    """Return the error that a worker told, with the place where it was raised there as a note."""
    error = _rebuild_error(*failed)
    if failed[3]:
        error.add_note(f"In the worker process:\n{failed[3]}")
    return error


def _rebuild_error(kind: str, message: str, hint: str, traceback: str) -> IostackError:
    known: type[IostackError] = getattr(errors, kind)
    return known(message, hint=hint)
