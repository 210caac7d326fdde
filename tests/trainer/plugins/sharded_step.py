"""An optimizer wrapper as a third party would write it: each data rank updates its share of the parameters (ZeRO-1)."""

import iostack
from iostack.errors import ResolveError
from trainer.contracts import Parallelism, Phase


class ShardedStep(Parallelism):
    name = "sharded_step"
    phase = Phase.SHARD
    after = ("ddp", "replicate")

    def check(self, request, facts):
        if request.size("dp_replicate") == 1:
            raise ResolveError("sharded_step needs several replicas", hint="set parallel.data above 1")

    def optimizer(self, optimizer, stages, ctx):
        return OwnShare(optimizer, ctx.groups["dp_replicate"], ctx.rank("dp_replicate"), ctx.size("dp_replicate"))


class OwnShare:
    def __init__(self, inner, group, rank, size):
        everything = [parameter for part in inner.param_groups for parameter in part["params"]]
        self.owners = [(parameter, index % size) for index, parameter in enumerate(everything)]
        own = {id(parameter) for parameter, owner in self.owners if owner == rank}
        for part in inner.param_groups:
            part["params"] = [parameter for parameter in part["params"] if id(parameter) in own]
        inner.param_groups[:] = [part for part in inner.param_groups if part["params"]]
        self.inner, self.group = inner, group
        self.param_groups, self.state = inner.param_groups, inner.state

    def step(self):
        import torch.distributed as dist

        self.inner.step()
        for parameter, owner in self.owners:
            value = parameter.data.to_local() if hasattr(parameter.data, "to_local") else parameter.data
            dist.broadcast(value, group_src=owner, group=self.group)


@iostack.hookimpl
def iostack_parallelisms():
    return [ShardedStep]
