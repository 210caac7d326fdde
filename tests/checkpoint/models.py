"""A small model with AdamW, in the ways that torch distributes it over four ranks."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

PARALLEL = ("replicated", "fsdp", "hsdp", "tensor", "tensor_fsdp")


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(6, 10)
        self.down = nn.Linear(10, 6)
        self.norm = nn.LayerNorm(6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x + self.down(torch.relu(self.up(x))))


def parallel_model(layout: str, *, steps: int, seed: int = 0) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Return a model and its optimizer after some steps on the same batches on all ranks."""
    torch.manual_seed(seed)
    model = nn.Sequential(*(Block() for _ in range(2)))
    if layout in ("tensor", "tensor_fsdp"):
        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
        for block in model:
            parallelize_module(block, mesh["tensor"], {"up": ColwiseParallel(), "down": RowwiseParallel()})
        if layout == "tensor_fsdp":
            for module in (*model, model):
                fully_shard(module, mesh=mesh["data"])
    elif layout in ("fsdp", "hsdp"):
        mesh = (
            init_device_mesh("cpu", (4,))
            if layout == "fsdp"
            else init_device_mesh("cpu", (2, 2), mesh_dim_names=("copies", "shards"))
        )
        for module in (*model, model):
            fully_shard(module, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01 + seed, foreach=False)
    for step in range(steps):
        torch.manual_seed(step)
        model(torch.randn(4, 6)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def training_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[dict[str, torch.Tensor], Any]:
    """Return the tensors of a model and its optimizer by name, and the optimizer's numbers."""
    weights, moments = get_state_dict(model, optimizer, options=StateDictOptions(flatten_optimizer_state_dict=True))
    tensors = {f"model.{name}": value for name, value in weights.items()}
    scalars = {}
    for name, value in moments.items():
        if isinstance(value, torch.Tensor):
            tensors[f"optimizer.{name}"] = value
        else:
            scalars[name] = value
    return tensors, scalars


def full(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return whole copies of tensors; a collective."""
    return {
        name: (value.full_tensor() if isinstance(value, DTensor) else value).detach().clone()
        for name, value in tensors.items()
    }
