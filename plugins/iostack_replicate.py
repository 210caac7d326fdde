"""The parallelism "replicate": torch's composable replicate (the machinery of FSDP2) over the axis dp_replicate."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import iostack
from iostack.errors import ResolveError
from trainer.contracts import Context, Cost, Facts, Parallelism, Phase, Request

if TYPE_CHECKING:
    from torch import nn


class Replicate(Parallelism):
    """Every rank holds the whole model; gradients are summed layer by layer. Right under every pipeline schedule.

    Its divisor is 1: each module is told to divide by 1 and to reduce by a plain sum; told to the root only, gradients
    were 50 to 75 % off.
    """

    name = "replicate"
    phase = Phase.SHARD
    axes = ("dp_replicate",)
    applies_to_meta = True

    def check(self, request: Request, facts: Facts) -> None:
        """Refuse torch versions without it, and axes that need its mesh to have more dimensions."""
        if _replicate() is None:
            raise ResolveError(
                f"torch {facts.torch_version} has no composable replicate on FSDP2", hint="install torch >= 2.11"
            )
        if request.size("dp_shard") > 1:
            raise ResolveError(
                "replicate cannot be combined with axis dp_shard", hint="let one parallelism provide both axes"
            )

    def apply(self, stage: nn.Module, ctx: Context) -> nn.Module:
        """Replicate each layer, then what is left, so that reductions overlap with backward."""
        if ctx.mesh is None or ctx.size("dp_replicate") == 1:
            return stage
        replicate, mesh = _replicate(), ctx.mesh["dp_replicate"]
        layers = [stage.get_submodule(name) for name in ctx.facts.layers if _has(stage, name)]
        for module in (*layers, stage):
            replicate(module, mesh=mesh)
        for module in (*layers, stage):
            module.set_gradient_divide_factor(1.0)  # type: ignore[operator]
            module.set_force_sum_reduction_for_comms(True)  # type: ignore[operator]
        return stage

    def microbatch(self, stages: Sequence[nn.Module], last: bool) -> AbstractContextManager[Any]:
        """Reduce at the last microbatch only."""
        for stage in stages:
            if hasattr(stage, "set_requires_gradient_sync"):
                stage.set_requires_gradient_sync(last)  # type: ignore[operator]
                stage.set_is_last_backward(last)  # type: ignore[operator]
        return nullcontext()

    def cost(self, facts: Facts, ctx: Context) -> Cost:
        """An all-reduce of fp32 gradients."""
        ranks, gradient_bytes = ctx.size("dp_replicate"), 4.0 * facts.num_parameters
        return Cost(communication_bytes=2 * gradient_bytes * (ranks - 1) / ranks)


def _replicate() -> Any:
    """Return torch's function where it takes a mesh; it moved and changed its arguments before torch 2.11."""
    import inspect

    try:
        from torch.distributed._composable.replicate_with_fsdp import replicate
    except ImportError:
        return None
    return replicate if "mesh" in inspect.signature(replicate).parameters else None


def _has(stage: nn.Module, name: str) -> bool:
    try:
        stage.get_submodule(name)
    except AttributeError:
        return False
    return True


@iostack.hookimpl
def iostack_parallelisms() -> Sequence[type[Parallelism]]:
    """Offer ``parallel.use = ["replicate"]``."""
    return [Replicate]
