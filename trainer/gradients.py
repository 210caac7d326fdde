"""One global gradient norm over plain and distributed tensors, mixed meshes and pipeline stages; and clipping by it.

Each parameter counts once: local squares are summed in float64, then over the mesh dimensions that shard the parameter,
then over the stages. The sums are taken in a fixed order, so the norm has the same bits on every rank.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.distributed.tensor import DTensor

from iostack.errors import PluginError
from trainer.contracts import Context
from trainer.names import named_parameters


class Gradients:
    """The gradients of this rank's stages. All ranks must make it, and call ``norm``, together.

    ``parameters`` maps names to the parameters as the optimizer knows them. They are remembered here because FSDP2 and
    replicate show others (gathered ones) between a forward without backward and the next backward.

    A parameter that several stages hold (tied embeddings) counts on the first of them: its copies have equal gradients.
    """

    def __init__(self, stages: Sequence[nn.Module], ctx: Context) -> None:
        self._device = ctx.device
        self._stage_group = ctx.groups.get("pp")
        self.parameters = dict(named_parameters(stages))
        counted = _names_of_this_stage(list(self.parameters), ctx)
        self._groups: dict[str, ProcessGroup] = {}
        self._by_dims: dict[tuple[str, ...], list[Tensor]] = {}
        for name in sorted(counted):
            parameter = self.parameters[name]
            self._by_dims.setdefault(self._sharded_dims(parameter), []).append(parameter)

    def _sharded_dims(self, parameter: Tensor) -> tuple[str, ...]:
        if not isinstance(parameter, DTensor):
            return ()
        dims = []
        for index, placement in enumerate(parameter.placements):
            if placement.is_shard():
                dim = (parameter.device_mesh.mesh_dim_names or ())[index]
                self._groups[dim] = parameter.device_mesh.get_group(index)
                dims.append(dim)
        return tuple(dims)

    def clear(self) -> None:
        """Drop all gradients."""
        for parameter in self.parameters.values():
            parameter.grad = None

    def norm(self) -> Tensor:
        """Return the 2-norm of all gradients: float64, 0-dimensional, equal on all ranks."""
        total = torch.zeros((), dtype=torch.float64, device=self._device)
        for dims, parameters in sorted(self._by_dims.items(), key=lambda item: item[0]):
            gradients = [_local(parameter.grad) for parameter in parameters if parameter.grad is not None]
            squares = torch.zeros((), dtype=torch.float64, device=self._device)
            if gradients:
                norms = torch._foreach_norm(gradients, 2.0)
                squares = squares + torch.stack([norm.double() for norm in norms]).square().sum()
            for dim in dims:
                dist.all_reduce(squares, group=self._groups[dim])
            total = total + squares
        if self._stage_group is not None:
            dist.all_reduce(total, group=self._stage_group)
        return total.sqrt()

    def scale(self, factor: Tensor) -> None:
        """Multiply all gradients in place."""
        gradients = [_local(parameter.grad) for parameter in self.parameters.values() if parameter.grad is not None]
        by_dtype: dict[torch.dtype, list[Tensor]] = {}
        for gradient in gradients:
            by_dtype.setdefault(gradient.dtype, []).append(gradient)
        for dtype, same in by_dtype.items():
            torch._foreach_mul_(same, factor.to(dtype))


def clip_factor(norm: Tensor, limit: float | None) -> Tensor:
    """Return what gradients are multiplied by so that their norm is at most ``limit``."""
    if limit is None:
        return torch.ones_like(norm)
    return (limit / norm.clamp(min=1e-12)).clamp(max=1.0)


def _local(gradient: Tensor) -> Tensor:
    if not isinstance(gradient, DTensor):
        return gradient
    if any(placement.is_partial() for placement in gradient.placements):
        raise PluginError(
            "a gradient is still a partial sum after finish_gradients",
            hint="the parallelism that made it must reduce it in finish_gradients",
        )
    return gradient.to_local()


def _names_of_this_stage(names: list[str], ctx: Context) -> list[str]:
    """Return the names that no earlier pipeline rank holds."""
    if (group := ctx.groups.get("pp")) is None:
        return names
    everyone: list[list[str]] = [[] for _ in range(ctx.size("pp"))]
    dist.all_gather_object(everyone, names, group=group)
    earlier = {name for held in everyone[: ctx.rank("pp")] for name in held}
    return [name for name in names if name not in earlier]
