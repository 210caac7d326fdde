"""Fully qualified names: the only identity of a tensor, whatever wraps the module that holds it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor, nn

_WRAPPERS = ("_checkpoint_wrapped_module.", "_orig_mod.", "_fsdp_wrapped_module.")


def plain_name(name: str) -> str:
    """Return a name without what torch's wrappers of submodules put in between."""
    for infix in _WRAPPERS:
        name = name.replace(infix, "")
    return name


def named_parameters(stages: Sequence[nn.Module]) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, parameter) of all stages of this rank, each parameter once."""
    for stage in stages:
        for name, parameter in stage.named_parameters():
            yield plain_name(name), parameter


def named_tensors(stages: Sequence[nn.Module]) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, tensor) of the state of all stages: parameters and persistent buffers, sharing their memory."""
    for stage in stages:
        for name, tensor in stage.state_dict().items():
            yield plain_name(name), tensor
