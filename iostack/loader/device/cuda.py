"""What copies to a device need of CUDA; tests give ``DeviceCopies`` another device, whose copies are as late as they can be."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol, cast

import torch


class Event(Protocol):
    """A point in a device's work."""

    def synchronize(self) -> None:
        """Wait until the device has come to where the event was last recorded, if it ever was."""
        ...


class Device(Protocol):
    """A device to which copies run beside its other work."""

    def event(self) -> Event:
        """Return an event that was not recorded."""
        ...

    def pinned(self, num_values: int, dtype: torch.dtype) -> torch.Tensor:
        """Return host memory that copies can read while the host goes on."""
        ...

    def is_pinned(self, value: torch.Tensor) -> bool:
        """Return whether copies can read a host tensor while the host goes on."""
        ...

    def copying(self) -> AbstractContextManager[object]:
        """Make ``copy`` and ``record`` use the stream of the copies."""
        ...

    def copy(self, value: torch.Tensor) -> torch.Tensor:
        """Return ``value`` on the device, where it arrives before the next event that is recorded."""
        ...

    def record(self, event: Event) -> None:
        """Put the event behind the copies so far."""
        ...

    def hand_over(self, copied: Event, values: Sequence[torch.Tensor]) -> None:
        """Make the consumer's current stream wait for the event, and own the memory of the values on the device."""
        ...


class CudaDevice:
    """One CUDA device, with a stream for copies."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def event(self) -> Event:
        return cast(Event, torch.cuda.Event())  # type: ignore[no-untyped-call]

    def pinned(self, num_values: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(num_values, dtype=dtype, pin_memory=True)

    def is_pinned(self, value: torch.Tensor) -> bool:
        return value.is_pinned()

    def copying(self) -> AbstractContextManager[object]:
        return cast(AbstractContextManager[object], torch.cuda.stream(self._stream))

    def copy(self, value: torch.Tensor) -> torch.Tensor:
        return value.to(self._device, non_blocking=True)

    def record(self, event: Event) -> None:
        cast(torch.cuda.Event, event).record(self._stream)

    def hand_over(self, copied: Event, values: Sequence[torch.Tensor]) -> None:
        consumer = torch.cuda.current_stream(self._device)
        consumer.wait_event(cast(torch.cuda.Event, copied))
        for value in values:
            value.record_stream(consumer)
