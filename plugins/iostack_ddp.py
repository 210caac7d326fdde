"""The parallelism "ddp": torch's DistributedDataParallel over the axis dp_replicate."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import TYPE_CHECKING, Any

import iostack
from iostack.errors import PluginError, ResolveError
from trainer.contracts import Context, Cost, Facts, Parallelism, Phase, Request

if TYPE_CHECKING:
    from torch import nn


class DataParallel(Parallelism):
    """Every rank holds the whole model; gradients are averaged during backward, in buckets.

    A resumed run has the same bits as one that never stopped: DDP sorts its buckets anew after the first backward of
    every process, and their order decides the order of the sums (1e-7 in the loss on 4 ranks). So a backward of one
    sequence is made at the start, and every real step runs with the final buckets. ``unused_parameters`` is for models
    some of whose parameters get no gradient in a step: DDP then looks for them in every step (2 to 5 ms on a CPU) and
    never sorts its buckets.
    """

    name = "ddp"
    phase = Phase.SHARD
    axes = ("dp_replicate",)

    def __init__(self, *, bucket_mb: float = 25.0, unused_parameters: bool = False) -> None:
        self.bucket_mb, self.unused_parameters = bucket_mb, unused_parameters

    def check(self, request: Request, facts: Facts) -> None:
        """Refuse what DDP's hooks compute wrongly: gradients under a pipeline schedule were 41 to 110 % off."""
        for axis in ("pp", "tp", "cp", "dp_shard"):
            if request.size(axis) > 1:
                raise ResolveError(
                    f"ddp gives wrong or partial gradients together with axis {axis}",
                    hint='use torch\'s replicate instead: parallel.use = ["replicate"]',
                )

    def apply(self, stage: nn.Module, ctx: Context) -> nn.Module:
        """Wrap the stage and let DDP settle its buckets."""
        if ctx.size("dp_replicate") == 1:
            return stage
        from torch.nn.parallel import DistributedDataParallel

        wrapped = DistributedDataParallel(
            stage,
            process_group=ctx.groups["dp_replicate"],
            **_without_buffers(DistributedDataParallel),
            find_unused_parameters=self.unused_parameters,
            bucket_cap_mb=self.bucket_mb,
        )
        if not self.unused_parameters:
            _settle_buckets(wrapped, ctx)
        return wrapped

    def microbatch(self, stages: Sequence[nn.Module], last: bool) -> AbstractContextManager[Any]:
        """Reduce at the last microbatch only."""
        around = ExitStack()
        for stage in stages:
            if not last and hasattr(stage, "no_sync"):
                around.enter_context(stage.no_sync())  # type: ignore[operator]
        return around

    def gradient_divisor(self, ctx: Context) -> float:
        """DDP divides by its group size."""
        return float(ctx.size("dp_replicate"))

    def cost(self, facts: Facts, ctx: Context) -> Cost:
        """A ring all-reduce of fp32 gradients, and the buckets' copy of them."""
        ranks, gradient_bytes = ctx.size("dp_replicate"), 4.0 * facts.num_parameters
        return Cost(memory_bytes=gradient_bytes, communication_bytes=2 * gradient_bytes * (ranks - 1) / ranks)


def _without_buffers(ddp: type) -> dict[str, Any]:
    """Buffers follow from names and seeds, so they are equal already; torch 2.13 renamed the argument that says so."""
    known = inspect.signature(ddp).parameters
    return {"forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers": False}


def _settle_buckets(wrapped: nn.Module, ctx: Context) -> None:
    """Make one backward in eval mode (no dropout, no running means) and forget its gradients.

    Raises:
        PluginError: the model cannot run on a sequence of zeros.
    """
    import torch

    tokens_BS = torch.zeros((1, ctx.request.seq_len), dtype=torch.int64, device=ctx.device)
    wrapped.eval()
    try:
        wrapped(tokens_BS).sum().backward()
    except Exception as error:
        raise PluginError(
            f"ddp runs the model once on {ctx.request.seq_len} zeros to settle its buckets, and that failed:"
            f" {type(error).__name__}: {error}",
            hint="parallel.ddp.unused_parameters = true does without that run, if the model cannot do it",
        ) from error
    for parameter in wrapped.parameters():
        parameter.grad = None
    wrapped.train()


@iostack.hookimpl
def iostack_parallelisms() -> Sequence[type[Parallelism]]:
    """Offer ``parallel.data = N``."""
    return [DataParallel]
