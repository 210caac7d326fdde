"""bf16: fp32 weights, gradients and moments; matrix products and attention in bf16 by autocast, the loss in fp32."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def autocast_forward(stage: nn.Module, device_type: str) -> None:
    """Make the forward of a stage run under bf16 autocast, in place; names of parameters stay."""
    forward = stage.forward

    def forward_in_bf16(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast(device_type, dtype=torch.bfloat16):
            return forward(*args, **kwargs)

    stage.forward = forward_in_bf16
