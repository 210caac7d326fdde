"""Memory of batches that is used again, and never while anybody holds what lies in it."""

from __future__ import annotations

import ctypes
import pickle
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from typing import Any

import pytest
import torch

import iostack
from iostack.loader.device.copies import DeviceCopies
from iostack.loader.device.cuda import Event
from iostack.loader.sequences.buffers import sequence_columns
from iostack.loader.sequences.slots import Slots

from .pipelines import ENDLESS, SEQ_LEN, Corpora, make

ONE_BATCH_BLOCKS = {"memory": 4 * 12 * (SEQ_LEN + 2) * 8}
"""As small as it may be, so that slots are used again after every batch."""


def _addresses(slots: Slots, times: int) -> list[int]:
    return [slots.take(1).tokens.ctypes.data for _ in range(times)]


def test_memory_that_nobody_holds_is_used_again() -> None:
    assert len(set(_addresses(Slots(2, 3, sequence_columns(8, packed=False), pinned=False), 20))) == 1


HOLDS: dict[str, Callable[[torch.Tensor], Any]] = {
    "batch": lambda tokens: tokens,
    "row": lambda tokens: tokens[1],
    "transposed": lambda tokens: tokens.t(),
    "detached": lambda tokens: tokens.detach(),
    "numpy": lambda tokens: tokens.numpy(),
    "numpy slice": lambda tokens: tokens.numpy()[1:][:, 2:],
    "memoryview": lambda tokens: memoryview(tokens.numpy()),
    "storage": lambda tokens: tokens.untyped_storage(),
    "dlpack": lambda tokens: torch.utils.dlpack.from_dlpack(torch.utils.dlpack.to_dlpack(tokens)),
}


@pytest.mark.parametrize("hold", HOLDS)
def test_memory_is_not_used_again_while_anything_over_it_is_held(hold: str) -> None:
    slots = Slots(2, 3, sequence_columns(8, packed=False), pinned=False)
    buffers = slots.take(2)
    address = buffers.tokens.ctypes.data
    held = HOLDS[hold](buffers.batches()[1]["tokens"])
    del buffers
    assert address not in _addresses(slots, 10)
    del held
    assert address in _addresses(slots, 10)


def test_any_column_that_is_held_keeps_the_whole_slot() -> None:
    slots = Slots(2, 3, sequence_columns(8, packed=True), pinned=False)
    buffers = slots.take(2)
    address = buffers.tokens.ctypes.data
    held = buffers.batches()[0]["loss_mask"]
    del buffers
    assert address not in _addresses(slots, 5)
    del held
    assert address in _addresses(slots, 5)


@pytest.mark.parametrize("pipeline", ["tokens", "texts", "mix of three"])
def test_batches_that_are_held_never_change(small: Corpora, pipeline: str) -> None:
    held, copies = [], []
    with make(small, pipeline, **ONE_BATCH_BLOCKS) as loader:
        for number, batch in enumerate(islice(loader, 120)):
            if number % 3 == 0:
                held.append((batch["tokens"].numpy()[2:], batch["valid"].view(3, 4), batch["sample_ids"][5:]))
                copies.append(pickle.dumps(held[-1]))
            del batch
    for parts, copy in zip(held, copies, strict=True):
        assert pickle.dumps(parts) == copy


def test_blocks_use_the_same_memory_while_the_consumer_lets_go(small: Corpora) -> None:
    with make(small, "tokens", **ONE_BATCH_BLOCKS) as loader:
        assert len({batch["tokens"].data_ptr() for batch in islice(loader, 60)}) <= 3


@pytest.mark.parametrize("pipeline", ENDLESS)
def test_small_blocks_give_the_same_batches(small: Corpora, pipeline: str) -> None:
    memory = {"memory": "64 KiB"}
    with make(small, pipeline) as plenty, make(small, pipeline, **memory) as little:
        for expected, batch in zip(islice(plenty, 40), islice(little, 40), strict=True):
            assert torch.equal(batch["sample_ids"], expected["sample_ids"])
            assert batch.keys() == expected.keys()


@pytest.mark.parametrize("packing", ["none", "split", "best_fit"])
def test_blocks_without_a_row_of_a_rare_source_give_the_same_batches(small: Corpora, packing: str) -> None:
    def taken(memory: str) -> list[list[int]]:
        mix = [(small["documents"], 1), (small["tokens"], 40)]
        with iostack.Loader(mix, batch_size=12, seq_len=10, lanes=4, packing=packing, memory=memory) as loader:
            return [batch["sample_ids"].tolist() for batch in islice(loader, 40)]

    assert taken("8 KiB") == taken("1 GiB")


class LateEvent:
    """Copies that happen when somebody waits for them."""

    def __init__(self) -> None:
        self.copies: list[tuple[torch.Tensor, torch.Tensor]] = []

    def synchronize(self) -> None:
        for there, here in self.copies:
            there.copy_(here)
        self.copies.clear()


class LateDevice:
    """A device whose copies read host memory as late as they may; memory outside slots and staging they read at once."""

    def __init__(self, *, slots_are_pinned: bool) -> None:
        self.slots_are_pinned = slots_are_pinned
        self.staged: set[int] = set()
        self.events: list[LateEvent] = []
        self._unrecorded: list[tuple[torch.Tensor, torch.Tensor]] = []

    def event(self) -> Event:
        self.events.append(LateEvent())
        return self.events[-1]

    def pinned(self, num_values: int, dtype: torch.dtype) -> torch.Tensor:
        memory = torch.empty(num_values, dtype=dtype)
        self.staged.add(memory.data_ptr())
        return memory

    def is_pinned(self, value: torch.Tensor) -> bool:
        return self.slots_are_pinned

    def copying(self) -> AbstractContextManager[object]:
        return nullcontext()

    def copy(self, value: torch.Tensor) -> torch.Tensor:
        if not self.slots_are_pinned and value.data_ptr() not in self.staged:
            return value.clone()
        there = torch.empty_like(value)
        self._unrecorded.append((there, _unowned(value)))
        return there

    def record(self, event: Event) -> None:
        assert isinstance(event, LateEvent)
        event.copies, self._unrecorded = self._unrecorded, []

    def hand_over(self, copied: Event, values: Sequence[torch.Tensor]) -> None:
        """Do nothing: the consumer's stream is as late as the copies."""


def _unowned(value: torch.Tensor) -> torch.Tensor:
    """Return a tensor over the memory of ``value`` that does not keep it, as a copy under way does not."""
    memory = (ctypes.c_char * value.nbytes).from_address(value.data_ptr())
    return torch.frombuffer(memory, dtype=value.dtype).view(value.shape)


def _copied(device: LateDevice, loader: iostack.Loader, number: int, staging_bytes: int) -> list[dict[str, Any]]:
    host = loader._batches.batches(0, None, {})
    copies = DeviceCopies(device, loader.meter, staging_bytes=staging_bytes).copies(host)
    batches = [batch.columns for batch in islice(copies, number)]
    for event in device.events:
        event.synchronize()
    copies.close()
    host.close()
    return batches


@pytest.mark.parametrize("staging_bytes", [0, 1000, 1 << 20])
@pytest.mark.parametrize("slots_are_pinned", [True, False])
@pytest.mark.parametrize("pipeline", ["tokens", "texts", "rows transformed", "mix of three"])
def test_copies_that_are_late_read_what_was_meant(
    small: Corpora, pipeline: str, slots_are_pinned: bool, staging_bytes: int
) -> None:
    device = LateDevice(slots_are_pinned=slots_are_pinned)
    with make(small, pipeline, **ONE_BATCH_BLOCKS) as loader, make(small, pipeline) as host:
        copied = _copied(device, loader, 40, staging_bytes)
        for batch, expected in zip(copied, islice(host, 40), strict=True):
            assert batch.keys() == expected.keys()
            for name, column in expected.items():
                same = torch.equal(batch[name], column) if isinstance(column, torch.Tensor) else batch[name] == column
                assert same, name
    assert bool(device.staged) == (not slots_are_pinned and staging_bytes > 0)
