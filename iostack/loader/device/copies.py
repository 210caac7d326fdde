"""From host to device: copies on a side stream out of pinned memory, events instead of waiting.

    slot ──────────────────────────side stream──> device batch ──event──> consumer's stream
    host batch ──memcpy──> staging ──side stream──> device batch ──event──> consumer's stream

Batches of sequences lie in pinned slots already, whole samples go through staging. A host batch is held until the event of
its copies has passed; what it lies in is used again then. Only CUDA devices go this way; others get a plain copy.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from typing import Any, NamedTuple

import torch

from iostack.errors import UsageError
from iostack.loader.device.cuda import CudaDevice, Device, Event
from iostack.loader.metering.meter import Meter
from iostack.loader.state import Cursors
from iostack.stages import count, stage

COPIES_AHEAD = 2


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


def to_device(
    batches: Iterator[LoadedBatch], device: torch.device, meter: Meter, *, pinned_bytes: int
) -> Iterator[LoadedBatch]:
    """Return the batches with their tensors on ``device``; ``pinned_bytes`` bounds the memory that they are staged in."""
    if device.type == "cuda":
        return DeviceCopies(CudaDevice(device), meter, staging_bytes=pinned_bytes).copies(batches)
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


class _Staging:
    """What the copies of one batch read: pinned memory, or the batch itself; and the event after which they have read it."""

    def __init__(self, device: Device, most_bytes: int) -> None:
        self.copied = device.event()
        self._device = device
        self._most_bytes = most_bytes
        self._pinned: dict[str, torch.Tensor] = {}
        self._held: list[torch.Tensor] = []

    def wait(self) -> None:
        """Wait until what the copies read may be used again, and let go of it."""
        self.copied.synchronize()
        self._held.clear()

    def hold(self, name: str, value: torch.Tensor) -> torch.Tensor:
        """Return ``value`` in pinned memory: itself where it is pinned, else a copy in memory that grows with need.

        Beyond the bound it is returned as it is: its copy to the device waits for the device, and is as right.
        """
        self._held.append(value)
        if self._device.is_pinned(value):
            return value
        memory = self._pinned.get(name)
        if memory is None or memory.dtype != value.dtype or memory.numel() < value.numel():
            others = sum(each.nbytes for other, each in self._pinned.items() if other != name)
            if others + value.nbytes > self._most_bytes:
                return value
            self._pinned.pop(name, None)
            memory = self._pinned[name] = self._device.pinned(value.numel(), value.dtype)
        return memory[: value.numel()].view(value.shape).copy_(value)


class DeviceCopies:
    """Copies batches to one device, ``COPIES_AHEAD`` of them while the consumer computes."""

    def __init__(self, device: Device, meter: Meter, *, staging_bytes: int) -> None:
        self._device = device
        self._meter = meter
        number = COPIES_AHEAD + 1
        self._staging = deque(_Staging(device, staging_bytes // number) for _ in range(number))

    def copies(self, batches: Iterator[LoadedBatch]) -> Generator[LoadedBatch, None, None]:
        """Yield the batches with their tensors on the device, safe to use on the consumer's current stream."""
        ahead: deque[tuple[LoadedBatch, Event]] = deque()
        for batch in batches:
            ahead.append(self._start(batch))
            del batch  # the slot that it lies in must not wait for the next one
            if len(ahead) == len(self._staging):
                yield self._finish(*ahead.popleft())
        while ahead:
            yield self._finish(*ahead.popleft())

    def _start(self, batch: LoadedBatch) -> tuple[LoadedBatch, Event]:
        staging = self._staging[0]
        self._staging.rotate(-1)
        columns = dict(batch.columns)
        with self._meter.consuming(), stage("device"):
            staging.wait()
            with stage("pin"):
                pinned = {
                    name: staging.hold(name, value)
                    for name, value in columns.items()
                    if isinstance(value, torch.Tensor)
                }
            with self._device.copying():
                columns |= {name: self._device.copy(value) for name, value in pinned.items()}
                self._device.record(staging.copied)
            for name in ("pin", "device"):
                count(name, samples=_num_samples(batch), num_bytes=_num_bytes(batch))
        return batch._replace(columns=columns), staging.copied

    def _finish(self, batch: LoadedBatch, copied: Event) -> LoadedBatch:
        self._device.hand_over(copied, [value for value in batch.columns.values() if isinstance(value, torch.Tensor)])
        return batch
