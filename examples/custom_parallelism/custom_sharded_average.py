"""The parallelism "sharded_average": replicas whose gradients are reduced piece by piece, without wrapping the model.

[parallel]
use = ["sharded_average"]

All gradients are laid end to end; each rank sums one piece of them (reduce-scatter) and sends it to all (all-gather).
It is written to be read: it neither overlaps with backward nor reuses its buffers.
"""

import iostack
from iostack.errors import ResolveError
from trainer.contracts import Cost, Parallelism, Phase


class ShardedAverage(Parallelism):
    """Averages over ``dp_replicate``, so its divisor is the number of replicas."""

    name = "sharded_average"
    phase = Phase.SHARD
    axes = ("dp_replicate",)

    def check(self, request, facts):
        """Refuse axes whose gradients are distributed tensors or reduced by others."""
        for axis in ("dp_shard", "tp"):
            if request.size(axis) > 1:
                raise ResolveError(
                    f"sharded_average cannot be combined with axis {axis}", hint='use parallel.use = ["replicate"]'
                )

    def finish_gradients(self, stages, ctx):
        """Replace every gradient by its average over the replicas."""
        ranks = ctx.size("dp_replicate")
        if ranks == 1:
            return
        import torch
        import torch.distributed as dist

        group = ctx.groups["dp_replicate"]
        gradients = [parameter.grad for stage in stages for parameter in stage.parameters()]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        padded = torch.nn.functional.pad(flat, (0, -len(flat) % ranks))
        pieces = list(padded.chunk(ranks))
        own = torch.empty_like(pieces[0])
        dist.reduce_scatter(own, pieces, group=group)
        dist.all_gather(pieces, own / ranks, group=group)  # into the pieces, which are views of `padded`
        start = 0
        for gradient in gradients:
            gradient.copy_(padded[start : start + gradient.numel()].view_as(gradient))
            start += gradient.numel()

    def gradient_divisor(self, ctx):
        """The loss is multiplied by what ``finish_gradients`` divides by."""
        return float(ctx.size("dp_replicate"))

    def cost(self, facts, ctx):
        """Two flat copies of the fp32 gradients, and a ring's traffic."""
        ranks, gradient_bytes = ctx.size("dp_replicate"), 4.0 * facts.num_parameters
        return Cost(memory_bytes=2 * gradient_bytes, communication_bytes=2 * gradient_bytes * (ranks - 1) / ranks)


@iostack.hookimpl
def iostack_parallelisms():
    """Offer ``parallel.use = ["sharded_average"]``."""
    return [ShardedAverage]
