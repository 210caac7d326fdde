"""The parallelism "recompute": activations of layers are computed again in backward instead of being kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import iostack
from iostack.errors import ResolveError, SettingsError
from trainer.contracts import Context, Facts, Parallelism, Phase, Request

if TYPE_CHECKING:
    from torch import nn


class Recompute(Parallelism):
    """Keeps only the inputs of layers (Chen et al. 2016, arXiv:1604.06174): less memory for a third more computation.

    ``every = 2`` recomputes every second layer.
    """

    name = "recompute"
    phase = Phase.RECOMPUTATION
    applies_to_meta = True

    def __init__(self, *, every: int = 1) -> None:
        if every < 1:
            raise SettingsError(f"parallel.recompute.every = {every} is not a number of layers", hint="at least 1")
        self.every = every

    def check(self, request: Request, facts: Facts) -> None:
        """Refuse models that do not name their layers."""
        if not facts.layers:
            raise ResolveError(
                "recompute needs to know the layers, but the model names none",
                hint="give the model layer_names(), or leave recompute out of parallel.use",
            )

    def apply(self, stage: nn.Module, ctx: Context) -> nn.Module:
        """Replace the forward of the layers, in place: no wrapper, so names stay."""
        modules = dict(stage.named_modules())
        for name in ctx.facts.layers[:: self.every]:
            if name in modules:
                _recompute(modules[name])
        return stage


def _recompute(layer: nn.Module) -> None:
    from torch.utils.checkpoint import checkpoint

    forward = layer.forward

    def forward_again(*args: Any, **kwargs: Any) -> Any:
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    layer.forward = forward_again


@iostack.hookimpl
def iostack_parallelisms() -> Sequence[type[Parallelism]]:
    """Offer ``parallel.use = ["recompute"]``."""
    return [Recompute]
