"""A program: a model, spread over this run's processes, that makes steps.

``build_program`` reads as the life of a model: built without memory, facts learnt, request resolved, mesh built, model
split, stages filled and wrapped, and around them loss, executor and optimizer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from iostack.errors import StateError
from iostack.registry import registry
from trainer.build import WEIGHT_DTYPES, build_on_meta, count_flops, gather_facts, materialise
from trainer.contracts import Context, Loss, Optimizer, Parallelism, Request
from trainer.determinism import make_deterministic
from trainer.executor import SequentialExecutor
from trainer.generation import sample_tokens
from trainer.gradients import Gradients
from trainer.loss import cross_entropy_sum
from trainer.mesh import build_context
from trainer.names import named_tensors
from trainer.optimizer import build_adamw, fill_state
from trainer.precision import autocast_forward
from trainer.random import stream_seed
from trainer.resolver import Resolution, resolve
from trainer.step import Assembly, StepReport, evaluation_step, training_step


class Program:
    """A model in training on this process. All methods but ``generate`` must be called on all ranks together.

    ``data_rank`` of ``data_ranks`` is the part of every batch that this process reads. Not thread-safe.
    """

    def __init__(
        self, resolution: Resolution, parts: Assembly, models: Sequence[nn.Module], *, flops_per_token: float, seed: int
    ) -> None:
        self.resolution = resolution
        self.device = parts.ctx.device
        self.data_rank = parts.ctx.data_rank
        self.data_ranks = parts.ctx.data_ranks
        self.num_parameters = resolution.facts.num_parameters
        self.flops_per_token = flops_per_token
        self.steps = 0
        self._parts = parts
        self._models = models
        self._seed = seed

    def step(self, batch: Mapping[str, Tensor], *, learning_rate: float) -> StepReport:
        """Train on this rank's part of one batch: ``tokens`` int64[b, seq_len + 1], ``valid`` bool[b], ``loss_mask``.

        Raises:
            RunError: the loss or the gradient norm is not finite; nothing was changed.
        """
        torch.manual_seed(stream_seed(self._seed, "step", self.steps, self.data_rank))
        report = training_step(self._parts, batch, learning_rate=learning_rate)
        self.steps += 1
        return report

    def evaluate(self, batch: Mapping[str, Tensor]) -> tuple[float, int]:
        """Return (loss sum, valid tokens) of a batch, summed over all data ranks; changes nothing."""
        return evaluation_step(self._parts, batch)

    def generate(
        self, prompt_ids: Sequence[int], num_tokens: int, *, temperature: float = 1.0, seed: int = 0
    ) -> list[int]:
        """Return ``num_tokens`` sampled after a prompt; 0.0 takes the likeliest each time.

        One rank may call it alone where the parameters are whole on it.

        Raises:
            RunError: this rank holds only a part of the model.
        """
        return sample_tokens(
            self._models,
            prompt_ids,
            num_tokens,
            ctx=self._parts.ctx,
            temperature=temperature,
            seed=seed,
        )

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors that a checkpoint holds, by ``model.NAME`` and ``optimizer.NAME.KEY``.

        They share the program's memory (distributed tensors where the program shards them): filling them in place loads
        them. A rank returns only what it holds.
        """
        held = {f"model.{name}": tensor for name, tensor in named_tensors(self._models)}
        names = {id(parameter): name for name, parameter in self._parts.gradients.parameters.items()}
        for group in self._parts.optimizer.param_groups:
            for parameter in group["params"]:
                for key, value in self._parts.optimizer.state[parameter].items():
                    if isinstance(value, Tensor):
                        held[f"optimizer.{names[id(parameter)]}.{key}"] = value
        return held

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy tensors that lie elsewhere, of the same names as those of ``tensors()``; nothing changes if any name differs.

        Raises:
            StateError: names are missing or unknown; names one.
        """
        own = self.tensors()
        if wrong := sorted(own.keys() ^ tensors.keys()):
            where = "is not in the checkpoint" if wrong[0] in own else "is not in this program"
            raise StateError(f"tensor {wrong[0]!r} {where} ({len(wrong)} names differ)")
        with torch.no_grad():
            for name, tensor in own.items():
                if tensors[name] is not tensor:
                    tensor.copy_(tensors[name])

    def state(self) -> dict[str, Any]:
        """Return the rest of the program's state: small, JSON-safe, the same on every rank."""
        backends = {backend.name: backend.state() for backend in self._parts.backends}
        return {"steps": self.steps, "backends": {name: state for name, state in backends.items() if state}}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take back what ``state`` returned; parallelisms that the state does not know start afresh."""
        self.steps = int(state["steps"])
        for backend in self._parts.backends:
            if backend.name in state["backends"]:
                backend.load_state(state["backends"][backend.name])


def build_program(
    request: Request,
    *,
    model_name: str,
    model_options: Mapping[str, object],
    vocab_size: int,
    device: torch.device | str,
    seed: int,
    weight_decay: float = 0.1,
    betas: tuple[float, float] = (0.9, 0.95),
    gradient_clip: float | None = 1.0,
    parallelisms: Sequence[type[Parallelism]] | None = None,
) -> Program:
    """Build a program for this process. All ranks must call it together, after the process group was made.

    ``parallelisms`` replaces those that are installed.

    Raises:
        ResolveError: the request is illegal; raised on every rank, before anything is allocated.
        SettingsError: the model or one of its options does not exist.
    """
    device = torch.device(device)
    if parallelisms is None:
        parallelisms = registry().listed("iostack_parallelisms")
    model = build_on_meta(model_name, model_options, vocab_size=vocab_size, seq_len=request.seq_len)
    resolution = resolve(request, gather_facts(model, device), parallelisms)
    backends = resolution.backends
    flops_per_token = count_flops(model, request.seq_len)

    make_deterministic()
    ctx = build_context(request, resolution.facts, device)
    models = _split(model, backends, ctx)
    stages = [_apply(stage, backends, ctx, seed=seed) for stage in models]
    loss: Loss = cross_entropy_sum
    for backend in backends:
        loss = backend.loss(loss, ctx)
    offered = [executor for backend in backends if (executor := backend.executor(stages, loss, ctx)) is not None]
    executor = offered[0] if offered else SequentialExecutor(stages, loss, backends, request.num_microbatches)
    optimizer: Optimizer = build_adamw(models, weight_decay=weight_decay, betas=betas)
    divisor = 1.0
    for backend in backends:
        optimizer = backend.optimizer(optimizer, stages, ctx)
        divisor *= backend.gradient_divisor(ctx)
    fill_state(optimizer)
    gradients = Gradients(models, ctx)
    parts = Assembly(ctx, backends, stages, executor, optimizer, gradients, divisor, gradient_clip)
    return Program(resolution, parts, models, flops_per_token=flops_per_token, seed=seed)


def _split(model: nn.Module, backends: Sequence[Parallelism], ctx: Context) -> list[nn.Module]:
    stages = [model]
    for backend in backends:
        with torch.device("meta"):
            stages = backend.split(model, ctx) or stages
    return [stage.to(WEIGHT_DTYPES[ctx.request.dtype]) for stage in stages]


def _apply(stage: nn.Module, backends: Sequence[Parallelism], ctx: Context, *, seed: int) -> nn.Module:
    """Wrap a stage by all backends; its values are drawn before the first that needs them."""
    inner = stage
    if ctx.request.dtype == "bf16":
        autocast_forward(stage, ctx.device.type)
    filled = False
    for backend in backends:
        if not filled and not backend.applies_to_meta:
            materialise(inner, seed=seed, device=ctx.device)
            filled = True
        stage = backend.apply(stage, ctx)
    if not filled:
        materialise(inner, seed=seed, device=ctx.device)
    return stage
