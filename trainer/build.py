"""Build a model without memory, learn the facts from it, and give its stages their initial values.

The model is built on the meta device, split there, and only the stages that this rank runs get memory. Initial values
are drawn module by module with a generator seeded from the module's name: the same for every layout and world size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from iostack.errors import PluginError, SettingsError
from iostack.registry import registry
from iostack.suggest import closest
from trainer.contracts import Facts
from trainer.names import plain_name
from trainer.random import stream_seed

WEIGHT_DTYPES = {"fp32": torch.float32, "bf16": torch.float32, "fp64": torch.float64}
"""Weights, gradients and moments of bf16 runs stay fp32: only the computation is cast (autocast)."""


def build_on_meta(name: str, options: Mapping[str, object], *, vocab_size: int, seq_len: int) -> nn.Module:
    """Build a model by name on the meta device.

    Raises:
        SettingsError: no plugin offers such a model, or an option is impossible.
    """
    models = registry().named("iostack_models")
    if name not in models:
        broken = registry().blame_broken()
        raise SettingsError(f"no installed model is named {name!r}{broken}", hint=closest(name, models))
    with torch.device("meta"):
        model = models[name](options, vocab_size=vocab_size, seq_len=seq_len)
    if not isinstance(model, nn.Module):
        raise PluginError(f"the model {name!r} is a {type(model).__name__}, not a torch.nn.Module")
    return model


def gather_facts(model: nn.Module, device: torch.device) -> Facts:
    """Return what the resolver needs to know about a model (on any device) and the machine."""
    layer_names = getattr(model, "layer_names", tuple)
    return Facts(
        torch_version=torch.__version__,
        device_type=device.type,
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        layers=tuple(layer_names()),
        features=frozenset(getattr(model, "features", ())),
    )


def count_flops(model: nn.Module, seq_len: int) -> float:
    """Return floating-point operations per token: the model's own count, else 6 per parameter (Kaplan et al. 2020)."""
    own: Callable[[int], float] | None = getattr(model, "flops_per_token", None)
    return own(seq_len) if own else 6.0 * sum(parameter.numel() for parameter in model.parameters())


def materialise(stage: nn.Module, *, seed: int, device: torch.device) -> None:
    """Give every parameter and buffer of a stage on the meta device its memory and initial value.

    Values are drawn on the CPU, whatever the device and layout; a distributed tensor keeps its share of the full one.

    Raises:
        PluginError: a module owns tensors but has no ``reset_parameters``.
    """
    shared: dict[int, nn.Parameter] = {}
    for name, module in stage.named_modules():
        parameters = {key: tensor for key, tensor in module._parameters.items() if tensor is not None}
        buffers = {key: tensor for key, tensor in module._buffers.items() if tensor is not None}
        if not any(tensor.is_meta for tensor in (*parameters.values(), *buffers.values())):
            continue
        reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
        if reset is None:
            raise PluginError(
                f"module {name or 'the model'!r} ({type(module).__name__}) owns tensors but has no reset_parameters()",
                hint="models are built without memory: give it one that fills its parameters and buffers",
            )
        for key, tensor in parameters.items():
            module._parameters[key] = nn.Parameter(_empty(tensor), requires_grad=tensor.requires_grad)
        for key, tensor in buffers.items():
            module._buffers[key] = _empty(tensor)
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(stream_seed(seed, "init", plain_name(name)))
            reset()
        for key, tensor in parameters.items():
            full = module._parameters[key]
            assert full is not None
            if id(tensor) not in shared:
                shared[id(tensor)] = nn.Parameter(_placed(full.data, tensor, device), tensor.requires_grad)
            module._parameters[key] = shared[id(tensor)]
        for key, tensor in buffers.items():
            full_buffer = module._buffers[key]
            assert full_buffer is not None
            module._buffers[key] = _placed(full_buffer, tensor, device)


def _empty(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")


def _placed(full: Tensor, like: Tensor, device: torch.device) -> Tensor:
    if isinstance(like, DTensor):
        return distribute_tensor(full.to(device), like.device_mesh, like.placements, src_data_rank=None)
    return full.to(device)
