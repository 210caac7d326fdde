"""AdamW with decay only where it helps, and the learning rate as a pure function of the step."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from trainer.contracts import Optimizer


def learning_rate(step: int, *, peak: float, warmup_steps: int, total_steps: int, minimum: float = 0.0) -> float:
    """Return the learning rate of a step (0 is the first): linear warm-up, then half a cosine to ``minimum``.

    Step ``warmup_steps`` has the peak, step ``total_steps - 1`` and all after it the minimum.
    """
    if step < warmup_steps:
        return peak * (step + 1) / (warmup_steps + 1)
    decay_steps = max(1, total_steps - 1 - warmup_steps)
    progress = min(1.0, (step - warmup_steps) / decay_steps)
    return minimum + (peak - minimum) * 0.5 * (1.0 + math.cos(math.pi * progress))


def build_adamw(
    stages: Sequence[nn.Module], *, weight_decay: float, betas: tuple[float, float], epsilon: float = 1e-8
) -> torch.optim.AdamW:
    """Return AdamW over all parameters of the stages; norms, biases and embeddings do not decay.

    The learning rate is set before every step. Fused: one kernel per group, on CPU too.
    """
    decayed: list[Tensor] = []
    plain: list[Tensor] = []
    seen: set[int] = set()
    for stage in stages:
        for module in stage.modules():
            for parameter in module.parameters(recurse=False):
                if id(parameter) in seen or not parameter.requires_grad:
                    continue
                seen.add(id(parameter))
                decays = parameter.ndim >= 2 and not isinstance(module, nn.Embedding)
                (decayed if decays else plain).append(parameter)
    groups = [
        {"params": params, "weight_decay": decay} for params, decay in ((decayed, weight_decay), (plain, 0.0)) if params
    ]
    return torch.optim.AdamW(groups, lr=0.0, betas=betas, eps=epsilon, fused=True)


def fill_state(optimizer: Optimizer) -> None:
    """Give every parameter of an AdamW its zero moments now, so that a checkpoint has somewhere to load into.

    AdamW makes exactly these at its first step. Parameters that already have state keep it.
    """
    for group in optimizer.param_groups:
        on_device = group.get("fused") or group.get("capturable")
        for parameter in group["params"]:
            if not optimizer.state[parameter]:
                device = parameter.device if on_device else torch.device("cpu")
                optimizer.state[parameter] = {
                    "step": torch.zeros((), dtype=torch.float32, device=device),
                    "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
                    "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
                }


def set_learning_rate(optimizer: Optimizer, value: float) -> None:
    """Set the learning rate of all groups."""
    for group in optimizer.param_groups:
        group["lr"] = value
