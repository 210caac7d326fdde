"""One device mesh for all parallelisms, this process's place in it, and sums over its axes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from iostack.errors import RunError
from trainer.contracts import AXES, Context, Facts, Request

DATA_AXES = tuple(axis.name for axis in AXES if axis.splits_data)
"""Ranks along these read different samples."""
LOSS_AXES = tuple(axis.name for axis in AXES if axis.synchronises_gradients or axis.name == "pp")
"""Ranks along these hold parts of the loss sum: of the samples, of the sequence, or (all but the last stage) nothing."""


def build_context(request: Request, facts: Facts, device: torch.device) -> Context:
    """Build the mesh of a resolved request. All ranks must call it together; a single process needs no process group.

    Raises:
        RunError: the process group does not fit the request.
    """
    if request.world_size == 1:
        return Context(request=request, facts=facts, device=device)
    if not dist.is_initialized() or dist.get_world_size() != request.world_size:
        found = dist.get_world_size() if dist.is_initialized() else "no process group"
        raise RunError(
            f"the request is for {request.world_size} processes, but there is {found}",
            hint="start the run with torchrun, or with iostack train --procs",
        )
    names = tuple(axis.name for axis in AXES if request.size(axis.name) > 1)
    mesh = init_device_mesh(device.type, tuple(request.size(name) for name in names), mesh_dim_names=names)
    groups = {name: mesh.get_group(name) for name in names}
    ranks = {name: mesh.get_local_rank(name) for name in names}
    return Context(request=request, facts=facts, device=device, mesh=mesh, groups=groups, ranks=ranks)


def sum_over(value: Tensor, axes: Sequence[str], ctx: Context) -> Tensor:
    """Return the sum of a tensor over the ranks of some axes, equal in its bits on all of them."""
    total = value.clone()
    for axis in axes:
        if (group := ctx.groups.get(axis)) is not None:
            dist.all_reduce(total, group=group)
    return total
