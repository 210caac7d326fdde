"""Sharded parameters as a third party would write it: torch's FSDP2, alone or as the inner axis of HSDP."""

import iostack
from trainer.contracts import Parallelism, Phase


class ShardedParameters(Parallelism):
    name = "sharded_parameters"
    phase = Phase.SHARD
    axes = ("dp_shard", "dp_replicate")
    applies_to_meta = True

    def apply(self, stage, ctx):
        from torch.distributed.fsdp import fully_shard

        mesh = ctx.mesh[tuple(axis for axis in ("dp_replicate", "dp_shard") if ctx.size(axis) > 1)]
        named = dict(stage.named_modules())
        modules = [*(named[name] for name in ctx.facts.layers if name in named), stage]
        for module in modules:
            fully_shard(module, mesh=mesh)
        for module in modules:
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
        return stage


@iostack.hookimpl
def iostack_parallelisms():
    return [ShardedParameters]
