"""From host to device: pinned slots in a ring, copies on a side stream, events instead of waiting.

    host batch ──memcpy──> pinned slot ──side stream──> device batch ──event──> consumer's stream

A slot is used again when its copy has finished. Only CUDA devices go this way; others get a plain copy.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from typing import Any, NamedTuple

import torch

from iostack.errors import UsageError
from iostack.loader.meter import Meter
from iostack.loader.state import Cursors
from iostack.stages import count, stage

_COPIES_AHEAD = 2


class LoadedBatch(NamedTuple):
    """A batch and what is true of the loader once it has been handed out."""

    columns: dict[str, Any]
    next_position: int
    cursors: Cursors


def find_device(device: str | torch.device) -> torch.device:
    """Return the device with its number: ``cuda`` is the one that is current now, whatever becomes current later.

    Raises:
        UsageError: there is no such device.
    """
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise UsageError(f"{device!r} is no device: {str(error).splitlines()[0]}") from error
    if found.type != "cuda":
        return found
    if not torch.cuda.is_available():
        raise UsageError(f"there is no CUDA device for device={str(device)!r}", hint='use device="cpu"')
    index = found.index if found.index is not None else torch.cuda.current_device()
    if index >= torch.cuda.device_count():
        raise UsageError(f"there is no device {found}: {torch.cuda.device_count()} CUDA devices are here")
    return torch.device("cuda", index)


def to_device(batches: Iterator[LoadedBatch], device: torch.device, meter: Meter) -> Iterator[LoadedBatch]:
    """Return the batches with their tensors on ``device``."""
    if device.type == "cuda":
        return DeviceCopies(device, meter).copies(batches)
    if device.type != "cpu":
        return (_moved(batch, device, meter) for batch in batches)
    return batches


def _moved(batch: LoadedBatch, device: torch.device, meter: Meter) -> LoadedBatch:
    with meter.consuming(), stage("device"):
        columns = {
            name: value.to(device) if isinstance(value, torch.Tensor) else value
            for name, value in batch.columns.items()
        }
        count("device", samples=_num_samples(batch), num_bytes=_num_bytes(batch))
    return batch._replace(columns=columns)


def _num_samples(batch: LoadedBatch) -> int:
    return len(batch.columns["sample_ids"])


def _num_bytes(batch: LoadedBatch) -> int:
    return sum(value.nbytes for value in batch.columns.values() if isinstance(value, torch.Tensor))


class _Slot:
    """Pinned memory for one batch, and the event of the copy that last used it."""

    def __init__(self) -> None:
        self._pinned: dict[str, torch.Tensor] = {}
        self.copied = torch.cuda.Event()  # type: ignore[no-untyped-call]

    def hold(self, name: str, value: torch.Tensor) -> torch.Tensor:
        """Return ``value`` in pinned memory, taking a larger piece only when it does not fit."""
        held = self._pinned.get(name)
        if held is None or held.dtype != value.dtype or held.numel() < value.numel():
            held = self._pinned[name] = torch.empty(value.numel(), dtype=value.dtype, pin_memory=True)
        return held[: value.numel()].view(value.shape).copy_(value)


class DeviceCopies:
    """Copies batches to one CUDA device, ``_COPIES_AHEAD`` of them while the consumer computes."""

    def __init__(self, device: torch.device, meter: Meter) -> None:
        self._device = device
        self._meter = meter
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._slots = [_Slot() for _ in range(_COPIES_AHEAD + 1)]
        self._next_slot = 0

    def copies(self, batches: Iterator[LoadedBatch]) -> Generator[LoadedBatch, None, None]:
        """Yield the batches with their tensors on the device, safe to use on the consumer's current stream."""
        ahead: deque[tuple[LoadedBatch, _Slot]] = deque()
        for batch in batches:
            ahead.append(self._start(batch))
            if len(ahead) > _COPIES_AHEAD:
                yield self._finish(*ahead.popleft())
        while ahead:
            yield self._finish(*ahead.popleft())

    def _start(self, batch: LoadedBatch) -> tuple[LoadedBatch, _Slot]:
        slot = self._slots[self._next_slot]
        self._next_slot = (self._next_slot + 1) % len(self._slots)
        columns = dict(batch.columns)
        with self._meter.consuming(), stage("device"):
            slot.copied.synchronize()
            with stage("pin"):
                pinned = {
                    name: slot.hold(name, value) for name, value in columns.items() if isinstance(value, torch.Tensor)
                }
            with torch.cuda.stream(self._stream):
                columns |= {name: value.to(self._device, non_blocking=True) for name, value in pinned.items()}
                slot.copied.record(self._stream)
            for name in ("pin", "device"):
                count(name, samples=_num_samples(batch), num_bytes=_num_bytes(batch))
        return batch._replace(columns=columns), slot

    def _finish(self, batch: LoadedBatch, slot: _Slot) -> LoadedBatch:
        consumer = torch.cuda.current_stream(self._device)
        consumer.wait_event(slot.copied)
        for value in batch.columns.values():
            if isinstance(value, torch.Tensor):
                value.record_stream(consumer)
        return batch
