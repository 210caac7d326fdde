"""A rank reads what it wants and little else; every cut of every rectangle is put together again."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from trainer.checkpoint import Checkpointer, reader
from trainer.checkpoint.layout import StepId
from trainer.checkpoint.local_store import LocalStore
from trainer.checkpoint.manifest import open_index, read_index_file, read_manifest
from trainer.checkpoint.pieces import overlapping
from trainer.checkpoint.reader import Box, fill, split
from trainer.checkpoint.safetensors_file import BLOCK_BYTES


@pytest.fixture
def eight_ranks() -> Iterator[None]:
    """A world of eight in which this process is rank 5 and nobody answers."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=5, world_size=8)
    yield
    dist.destroy_process_group()


class CountingStore(LocalStore):
    def __init__(self, root: str) -> None:
        super().__init__(root)
        self.num_bytes = self.num_reads = 0

    def read_range(self, path: str, begin: int, end: int) -> bytearray:
        self.num_bytes += end - begin
        self.num_reads += 1
        return super().read_range(path, begin, end)


@pytest.mark.parametrize(
    ("shape", "dim", "most"),
    [
        ((8192, 512), 0, 2 * BLOCK_BYTES),  # 2 MiB of 16, rounded out to blocks
        ((8, 1 << 20), 1, 8 * 2 * BLOCK_BYTES),  # 8 stretches of 512 KiB, 4 MiB apart
        ((1024, 8192), 1, 32 << 20),  # columns thinner than a block: all of it has to be read
    ],
)
def test_an_eighth_of_a_tensor_reads_about_an_eighth(
    tmp_path: Path, shape: tuple[int, int], dim: int, most: int, request: pytest.FixtureRequest
) -> None:
    whole = torch.arange(math.prod(shape), dtype=torch.float32).reshape(shape)
    checkpoints = Checkpointer(str(tmp_path))
    checkpoints.begin({})
    checkpoints.save(1, {"w": whole}, {}, settings={})
    request.getfixturevalue("eight_ranks")
    mesh = init_device_mesh("cpu", (8,))
    target = distribute_tensor(torch.zeros(shape), mesh, [Shard(dim)], src_data_rank=None)
    store = CountingStore(str(tmp_path))
    manifest = read_manifest(store, StepId(step=1, generation=1))
    fill(store, manifest, open_index(store, manifest, read_index_file(store, manifest)), {"w": target})
    assert torch.equal(target.to_local(), whole.chunk(8, dim)[5])
    assert store.num_bytes <= most + 2 * BLOCK_BYTES


def test_many_small_tensors_are_read_together(tmp_path: Path) -> None:
    tensors = {f"layer.{number}": torch.full((100,), float(number)) for number in range(1000)}
    checkpoints = Checkpointer(str(tmp_path))
    checkpoints.begin({})
    checkpoints.save(1, tensors, {}, settings={})
    store = CountingStore(str(tmp_path))
    manifest = read_manifest(store, StepId(step=1, generation=1))
    loaded = {name: torch.zeros(100) for name in tensors}
    fill(store, manifest, open_index(store, manifest, read_index_file(store, manifest)), loaded)
    assert store.num_reads == 1
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)


@st.composite
def rectangles(draw: st.DrawFn) -> tuple[tuple[int, ...], list[tuple[int, int]]]:
    shape = tuple(draw(st.lists(st.integers(1, 9), max_size=4)))
    ranges = []
    for size in shape:
        begin = draw(st.integers(0, size - 1))
        ranges.append((begin, draw(st.integers(begin + 1, size))))
    return shape, ranges


@settings(deadline=None)
@given(rectangle=rectangles(), read_bytes=st.integers(4, 200), block_bytes=st.integers(4, 100))
def test_the_boxes_of_a_rectangle_fill_it_once(
    rectangle: tuple[tuple[int, ...], list[tuple[int, int]]], read_bytes: int, block_bytes: int
) -> None:
    shape, ranges = rectangle
    piece = torch.arange(math.prod(shape), dtype=torch.int32).reshape(shape)
    wanted = piece
    for dim, (begin, end) in enumerate(ranges):
        wanted = wanted.narrow(dim, begin, end - begin)
    stored = piece.reshape(-1).view(torch.uint8)
    target = torch.zeros_like(wanted, memory_format=torch.contiguous_format)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(reader, "READ_BYTES", read_bytes)
        patched.setattr(reader, "BLOCK_BYTES", block_bytes)
        for box in split(Box(wanted.storage_offset() * 4, piece.stride(), target)):
            assert box.end - box.begin <= max(read_bytes, 4)
            source = stored[box.begin : box.end].view(torch.int32).as_strided(box.target.shape, box.strides)
            box.target.add_(source + 1)
    assert torch.equal(target, wanted + 1)


@given(
    dims=st.integers(0, 3),
    numbers=st.lists(st.tuples(*[st.integers(0, 4)] * 3, *[st.integers(0, 3)] * 3), max_size=6),
)
def test_overlap_is_found_as_by_listing_all_elements(dims: int, numbers: list[tuple[int, ...]]) -> None:
    pieces = [(row[:dims], row[3 : 3 + dims]) for row in numbers]
    seen: set[tuple[int, ...]] = set()
    is_overlapping = False
    for offsets, sizes in pieces:
        elements = set(product(*(range(o, o + s) for o, s in zip(offsets, sizes))))
        is_overlapping |= bool(elements & seen)
        seen |= elements
    assert (overlapping(pieces) is not None) == is_overlapping
