"""The tensors of the resharding tests, and the ways to lay them over ranks. No part of pytest; ranks load it too."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard, distribute_tensor

# Sizes that no number of ranks divides, fewer rows than ranks, none at all, no dimension, more than a block.
SHAPES: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
    "uneven": ((7, 5), torch.float32),
    "few": ((3,), torch.float64),
    "one": ((1,), torch.float32),
    "empty": ((0, 4), torch.float32),
    "scalar": ((), torch.float32),
    "brain": ((16, 8), torch.bfloat16),
    "eight": ((9, 4), torch.float8_e4m3fn),
    "flags": ((6,), torch.bool),
    "cube": ((5, 6, 4), torch.int64),
    "large": ((1031, 700), torch.float32),
}
LAYOUTS = ("plain", "replicated", "rows", "columns", "hybrid", "grid", "rows_twice", "stages")


def whole(name: str, seed: int = 0) -> torch.Tensor:
    """Return a tensor of the set, with values that depend on its name and ``seed`` only."""
    shape, dtype = SHAPES[name]
    count = torch.Size(shape).numel()
    values = (torch.arange(count) * 7 + len(name) + seed) % 120
    return (values % 2 if dtype is torch.bool else values).to(dtype).reshape(shape)


def lay_out(layout: str, *, empty: bool = False) -> dict[str, torch.Tensor]:
    """Return what this rank holds of all tensors in a layout; of the same shape with zeros if ``empty``."""
    rank = dist.get_rank() if dist.is_initialized() else 0
    world = dist.get_world_size() if dist.is_initialized() else 1
    held: dict[str, torch.Tensor] = {}
    for number, name in enumerate(SHAPES):
        tensor = whole(name)
        if empty:
            tensor = torch.zeros_like(tensor)
        if layout == "plain":
            held[name] = tensor
        elif layout == "stages":
            if number % world == rank:
                held[name] = tensor
        else:
            held[name] = _distribute(tensor, _mesh(layout, world), _placements(layout, tensor.ndim))
    return held


def check_equal(tensors: dict[str, torch.Tensor]) -> None:
    """Assert that this rank's part of every tensor has the values of ``whole``, bit by bit."""
    for name, tensor in tensors.items():
        expected = whole(name)
        if isinstance(tensor, DTensor):
            expected = _distribute(expected, tensor.device_mesh, tensor.placements).to_local()
            tensor = tensor.to_local()
        assert tensor.shape == expected.shape, name
        assert torch.equal(as_bytes(tensor), as_bytes(expected)), name


def as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


@functools.cache
def _mesh(layout: str, world: int) -> DeviceMesh:
    return init_device_mesh("cpu", (world,) if layout in ("replicated", "rows", "columns") else (2, world // 2))


def _placements(layout: str, dims: int) -> list[Placement]:
    rows: Placement = Shard(0) if dims else Replicate()
    columns: Placement = Shard(1) if dims > 1 else Replicate()
    placements: dict[str, list[Placement]] = {
        "replicated": [Replicate()],
        "rows": [rows],
        "columns": [columns],
        "hybrid": [Replicate(), rows],
        "grid": [rows, columns],
        "rows_twice": [rows, rows],
    }
    return placements[layout]


def _distribute(tensor: torch.Tensor, mesh: DeviceMesh, placements: Sequence[Placement]) -> DTensor:
    return distribute_tensor(tensor, mesh, placements, src_data_rank=None)  # every rank has it all: no communication
