"""A pipeline as a third party would write it: torch's 1F1B schedule over the axis pp."""

from contextlib import suppress

import iostack
from iostack.errors import ResolveError
from trainer.contracts import Parallelism, Phase


class Pipeline(Parallelism):
    name = "pipeline"
    phase = Phase.SPLIT
    axes = ("pp",)

    def check(self, request, facts):
        if request.num_microbatches < request.size("pp"):
            raise ResolveError(f"pipeline needs at least {request.size('pp')} microbatches")
        if "split" not in facts.features:
            raise ResolveError("pipeline needs a model that can be split")

    def split(self, model, ctx):
        num_stages, num_layers = ctx.size("pp"), len(ctx.facts.layers)
        bounds = [num_layers * index // num_stages for index in range(num_stages + 1)]
        return [model.split(bounds)[ctx.rank("pp")]]

    def executor(self, stages, loss, ctx):
        return OneForwardOneBackward(stages[0], loss, ctx)

    def finish_gradients(self, stages, ctx):
        if "tied_embeddings" in ctx.facts.features:
            import torch.distributed as dist

            gradient = stages[0].embedding.weight.grad
            with suppress(AttributeError):  # the gradient of replicate and FSDP2 is a distributed tensor
                gradient = gradient.to_local()
            dist.all_reduce(gradient, group=ctx.groups["pp"])


class OneForwardOneBackward:
    def __init__(self, stage, loss, ctx):
        from torch.distributed.pipelining import PipelineStage, Schedule1F1B

        rank, size = ctx.rank("pp"), ctx.size("pp")
        self.is_first, self.is_last, self.loss, self.scale = rank == 0, rank == size - 1, loss, None
        wrapped = PipelineStage(stage, rank, size, ctx.device, group=ctx.groups["pp"])
        self.schedule = Schedule1F1B(wrapped, ctx.request.num_microbatches, self._scaled_loss, scale_grads=False)

    def _scaled_loss(self, logits, labels):
        return self.loss(logits, labels)[0] * self.scale

    def _call(self, method, batch, scale):
        import torch

        self.scale, losses = scale, []
        inputs = (batch["tokens"],) if self.is_first else ()
        extras = {name: tensor for name, tensor in batch.items() if name not in ("tokens", "labels")}
        method(*inputs, **extras, **({"target": batch["labels"], "losses": losses} if self.is_last else {}))
        return torch.stack(losses).sum().detach() / scale if losses else torch.zeros((), device=batch["tokens"].device)

    def run(self, batch, *, scale):
        return self._call(self.schedule.step, batch, scale)

    def evaluate(self, batch):
        return self._call(self.schedule.eval, batch, 1.0)


@iostack.hookimpl
def iostack_parallelisms():
    return [Pipeline]
