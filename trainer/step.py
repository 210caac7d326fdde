"""One training step, top to bottom, for every combination of parallelisms.

The one gradient rule: valid labels are counted as integers before forward and summed over the axes that split data;
backward runs on ``loss_sum * divisor / num_valid``, where each parallelism declares its divisor. So the gradient is that
of the mean over all valid labels of the step, however they are spread over ranks, microbatches and stages.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from iostack.errors import RunError
from trainer.contracts import Context, Executor, Optimizer, Parallelism
from trainer.gradients import Gradients, clip_factor
from trainer.loss import count_valid, label_batch
from trainer.mesh import DATA_AXES, LOSS_AXES, sum_over
from trainer.optimizer import set_learning_rate


@dataclass(frozen=True)
class Assembly:
    """What a step works on: the stages of this rank and all that was built around them."""

    ctx: Context
    backends: Sequence[Parallelism]
    stages: Sequence[nn.Module]
    executor: Executor
    optimizer: Optimizer
    gradients: Gradients
    divisor: float
    gradient_clip: float | None


@dataclass(frozen=True)
class StepReport:
    """What a step did, equal on all ranks: mean loss over valid labels, gradient norm before clipping."""

    loss: float
    grad_norm: float
    num_valid: int
    learning_rate: float


def training_step(parts: Assembly, batch: Mapping[str, Tensor], *, learning_rate: float) -> StepReport:
    """Make one step on this data rank's part of the batch. All ranks must call it together.

    Raises:
        RunError: the loss or the gradient norm is not finite; the parameters are as before the step.
    """
    ctx = parts.ctx
    labelled = label_batch(batch, ctx.device)
    num_valid = sum_over(count_valid(labelled), DATA_AXES, ctx)
    for backend in parts.backends:
        labelled = backend.batch(labelled, ctx)

    for stage in parts.stages:
        stage.train()
    parts.gradients.clear()
    loss_sum = parts.executor.run(labelled, scale=parts.divisor / num_valid.double().clamp(min=1.0))
    for backend in parts.backends:
        backend.finish_gradients(parts.stages, ctx)

    loss = sum_over(loss_sum.double(), LOSS_AXES, ctx) / num_valid.clamp(min=1)
    norm = parts.gradients.norm()
    mean_loss, grad_norm = torch.stack((loss, norm)).tolist()
    report = StepReport(mean_loss, grad_norm, int(num_valid), learning_rate)
    if not (math.isfinite(report.loss) and math.isfinite(report.grad_norm)):
        raise RunError(
            f"the loss is {report.loss} and the gradient norm {report.grad_norm}",
            hint="lower train.learning_rate, or lengthen the warm-up, and go on from the last checkpoint",
        )

    parts.gradients.scale(clip_factor(norm, parts.gradient_clip))
    set_learning_rate(parts.optimizer, learning_rate)
    parts.optimizer.step()
    return report


@torch.no_grad()
def evaluation_step(parts: Assembly, batch: Mapping[str, Tensor]) -> tuple[float, int]:
    """Return (loss sum, valid labels) of a batch over all data ranks. All ranks must call it together."""
    ctx = parts.ctx
    labelled = label_batch(batch, ctx.device)
    num_valid = sum_over(count_valid(labelled), DATA_AXES, ctx)
    for backend in parts.backends:
        labelled = backend.batch(labelled, ctx)
    for stage in parts.stages:
        stage.eval()
    loss_sum = sum_over(parts.executor.evaluate(labelled).double(), LOSS_AXES, ctx)
    return float(loss_sum), int(num_valid)
