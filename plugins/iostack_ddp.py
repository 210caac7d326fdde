"""The parallelism "ddp": torch's DistributedDataParallel over the axis dp_replicate."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import TYPE_CHECKING, Any

import iostack
from iostack.errors import ResolveError
from trainer.contracts import Context, Cost, Facts, Parallelism, Phase, Request

if TYPE_CHECKING:
    from torch import nn


class DataParallel(Parallelism):
    """Every rank holds the whole model; gradients are averaged during backward, in buckets.

    Bit-exact after a resume: buckets stay as they were built (``find_unused_parameters``), since the order of a bucket
    decides the order of gloo's and NCCL's sums, and DDP would change it after the first step of every process.
    """

    name = "ddp"
    phase = Phase.SHARD
    axes = ("dp_replicate",)

    def __init__(self, *, bucket_mb: float = 25.0) -> None:
        self.bucket_mb = bucket_mb

    def check(self, request: Request, facts: Facts) -> None:
        """Refuse what DDP's hooks compute wrongly: gradients under a pipeline schedule were 41 to 110 % off."""
        for axis in ("pp", "tp", "cp", "dp_shard"):
            if request.size(axis) > 1:
                raise ResolveError(
                    f"ddp gives wrong or partial gradients together with axis {axis}",
                    hint='use torch\'s replicate instead: parallel.use = ["replicate"]',
                )

    def apply(self, stage: nn.Module, ctx: Context) -> nn.Module:
        """Wrap the stage; parameters are equal on all ranks already, so nothing is broadcast but a check."""
        if ctx.size("dp_replicate") == 1:
            return stage
        from torch.nn.parallel import DistributedDataParallel

        warnings.filterwarnings("ignore", message="find_unused_parameters=True was specified")
        return DistributedDataParallel(
            stage,
            process_group=ctx.groups["dp_replicate"],
            broadcast_buffers=False,
            find_unused_parameters=True,
            bucket_cap_mb=self.bucket_mb,
        )

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


@iostack.hookimpl
def iostack_parallelisms() -> Sequence[type[Parallelism]]:
    """Offer ``parallel.data = N``."""
    return [DataParallel]
