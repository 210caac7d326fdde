"""The copies of a batch to a CUDA device, alone: into pinned memory, and from there to the device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from iostack.bench.rounds import Speed, measure


def copies_alone(batch: Mapping[str, Any], seconds: float) -> Iterator[tuple[str, Speed]]:
    """Yield the speeds of ``pin`` and ``device`` for the tensors of one batch; nothing without a CUDA device.

    One thread does both, as in the loader; each copy is waited for, so it is the bandwidth of one batch at a time.
    """
    columns = [value for value in batch.values() if isinstance(value, torch.Tensor)]
    if not torch.cuda.is_available() or not columns:
        return
    num_bytes = sum(column.nbytes for column in columns)
    pinned = [torch.empty_like(column, pin_memory=True) for column in columns]

    def pin(turn: int) -> tuple[float, int]:
        for held, column in zip(pinned, columns, strict=True):
            held.copy_(column)
        return len(columns[0]), num_bytes

    def copy(turn: int) -> tuple[float, int]:
        for held in pinned:
            held.to("cuda", non_blocking=True)
        torch.cuda.synchronize()
        return len(columns[0]), num_bytes

    yield "pin", measure(pin, threads=1, seconds=seconds, samples_per_byte=1.0)
    copy(0)  # the first one also starts CUDA
    yield "device", measure(copy, threads=1, seconds=seconds, samples_per_byte=1.0)
