"""What models, parallelisms and callbacks promise: the protocols that training plugins implement.

A parallelism is one small class whose methods default to the identity. The resolver orders the chosen ones; the program
calls them in that order:

    split ─> apply ─> loss ─> executor ─> optimizer          once, while the program is built
    batch ─> microbatch ─> finish_gradients                  in every step

This module imports no torch, so that listing plugins stays cheap.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from iostack.errors import SettingsError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh


class Phase(IntEnum):
    """When a parallelism is applied, first to last; inside a phase ``after`` and ``before`` decide, then the name."""

    SPLIT = 0
    TENSOR = 1
    CONTEXT = 2
    RECOMPUTATION = 3
    COMPILE = 4
    SHARD = 5


@dataclass(frozen=True)
class Axis:
    """A named dimension of the device mesh.

    ``splits_data``: ranks along it read different samples. ``synchronises_gradients``: ranks along it hold parts of the
    loss, and so of the gradient, of the same parameters. ``setting`` is its name in the settings.
    """

    name: str
    splits_data: bool
    synchronises_gradients: bool
    setting: str


AXES = (
    Axis("pp", splits_data=False, synchronises_gradients=False, setting="pipeline"),
    Axis("dp_replicate", splits_data=True, synchronises_gradients=True, setting="data"),
    Axis("dp_shard", splits_data=True, synchronises_gradients=True, setting="data_shard"),
    Axis("cp", splits_data=False, synchronises_gradients=True, setting="context"),
    Axis("tp", splits_data=False, synchronises_gradients=False, setting="tensor"),
)
"""All axes, outermost first: neighbours along ``tp`` are neighbouring ranks."""


@dataclass(frozen=True)
class Request:
    """What the user asks for, before anything is allocated; the same on every rank.

    ``axes`` maps axis names to sizes (missing: 1), ``use`` names parallelisms beyond those that the sizes imply,
    ``options`` holds keyword arguments per parallelism. ``batch_size`` counts sequences per step over the whole world;
    ``microbatch_size`` sequences per data rank and microbatch (None: the whole batch of the rank at once). ``dtype`` is
    ``"fp32"``, ``"bf16"`` (fp32 weights, autocast) or ``"fp64"``.
    """

    batch_size: int
    seq_len: int
    world_size: int = 1
    axes: Mapping[str, int] = field(default_factory=dict)
    use: tuple[str, ...] = ()
    microbatch_size: int | None = None
    dtype: str = "fp32"
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def size(self, axis: str) -> int:
        """Return the size of one axis; 1 where it was not asked for."""
        return self.axes.get(axis, 1)

    @property
    def data_ranks(self) -> int:
        """Number of ranks that read different samples."""
        ranks = 1
        for axis in AXES:
            ranks *= self.size(axis.name) if axis.splits_data else 1
        return ranks

    @property
    def num_microbatches(self) -> int:
        """Number of microbatches per step on each data rank."""
        return self.batch_size // self.data_ranks // (self.microbatch_size or self.batch_size // self.data_ranks)


@dataclass(frozen=True)
class Facts:
    """What is known about the model and the machine before anything is allocated; the same on every rank.

    ``layers`` are the fully qualified names of the repeated blocks; ``features`` are the model's (see ``Model``).
    """

    torch_version: str
    device_type: str
    num_parameters: int
    layers: tuple[str, ...] = ()
    features: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Context:
    """Where this process stands: given to every method of a parallelism but ``check``.

    ``mesh`` has the axes larger than 1, outermost first, and is None in a single process. ``groups`` are its process
    groups by axis. Stages of a pipeline on one rank share one context.
    """

    request: Request
    facts: Facts
    device: torch.device
    mesh: DeviceMesh | None = None
    groups: Mapping[str, ProcessGroup] = field(default_factory=dict)
    ranks: Mapping[str, int] = field(default_factory=dict)

    def size(self, axis: str) -> int:
        """Return the number of ranks along an axis."""
        return self.request.size(axis)

    def rank(self, axis: str) -> int:
        """Return this process's coordinate along an axis."""
        return self.ranks.get(axis, 0)

    @property
    def data_ranks(self) -> int:
        """Number of ranks that read different samples."""
        return self.request.data_ranks

    @property
    def data_rank(self) -> int:
        """Which part of every batch this process reads."""
        rank = 0
        for axis in AXES:
            if axis.splits_data:
                rank = rank * self.size(axis.name) + self.rank(axis.name)
        return rank


@dataclass(frozen=True)
class Cost:
    """What a parallelism costs per rank and step: an estimate for planners and for the printed plan."""

    memory_bytes: float = 0.0
    communication_bytes: float = 0.0
    bubble: float = 0.0
    """Share of the step that the rank idles, 0 to 1."""


Batch = dict[str, "Tensor"]
"""What an executor consumes: ``tokens`` int64[b, s], ``labels`` int64[b, s] (``IGNORED`` where there is no loss), and
anything else by name, one row per sequence: handed to the model as keyword arguments. Packed documents come with
``positions`` int32[b, s] and ``documents`` int64[b, s]: positions restart at each document, and attention stays inside each."""

IGNORED = -100
"""The label of a position that has no loss."""

Loss = Callable[["Tensor", "Tensor"], "tuple[Tensor, Tensor]"]
"""``loss(logits_BSV, labels_BS) -> (sum over the valid labels, their number)``."""


class Executor(Protocol):
    """Runs forward and backward over all microbatches of one step."""

    def run(self, batch: Batch, *, scale: Tensor) -> Tensor:
        """Add the gradients of ``loss_sum * scale`` of all microbatches to the parameters.

        Returns this rank's unscaled loss sum, detached: zero on ranks that do not hold the last stage.
        """
        ...

    def evaluate(self, batch: Batch) -> Tensor:
        """Return this rank's loss sum without gradients; zero on ranks that do not hold the last stage."""
        ...


class Optimizer(Protocol):
    """What the step and the checkpoints need of a ``torch.optim.Optimizer`` or of a wrapper of one.

    ``state`` maps the parameters that this rank updates to their tensors by name.
    """

    param_groups: list[dict[str, Any]]
    state: Any

    def step(self) -> Any: ...


class Parallelism:
    """A way to spread training over devices, or to trade memory for time. Subclass, name it, override what differs.

    ``axes`` are the mesh axes it provides: a size above 1 asks for it. ``after`` and ``before`` order it against others
    by name, ``conflicts`` names those it cannot be combined with. Options of ``[parallel.NAME]`` arrive as keyword
    arguments of ``__init__``, which runs before anything is allocated.
    """

    name: ClassVar[str]
    phase: ClassVar[Phase]
    axes: ClassVar[tuple[str, ...]] = ()
    after: ClassVar[tuple[str, ...]] = ()
    before: ClassVar[tuple[str, ...]] = ()
    conflicts: ClassVar[tuple[str, ...]] = ()
    applies_to_meta: ClassVar[bool] = False
    """Whether ``apply`` works on parameters of the meta device; the values then follow after it."""

    def check(self, request: Request, facts: Facts) -> None:
        """Refuse sizes, torch versions or models that do not fit; allocates nothing, decides alike on every rank.

        Raises:
            ResolveError: says what does not fit and what would.
        """

    def split(self, model: nn.Module, ctx: Context) -> list[nn.Module] | None:
        """Return the stages that this rank runs, on the meta device, or None where the model stays whole."""
        return None

    def apply(self, stage: nn.Module, ctx: Context) -> nn.Module:
        """Return the stage, changed in place or wrapped; names of parameters inside must stay as they are."""
        return stage

    def batch(self, batch: Batch, ctx: Context) -> Batch:
        """Return this rank's share of a batch: context parallelism shards the sequence and its labels."""
        return batch

    def loss(self, loss: Loss, ctx: Context) -> Loss:
        """Return the loss to use, of the same value: loss-parallel, chunked."""
        return loss

    def executor(self, stages: Sequence[nn.Module], loss: Loss, ctx: Context) -> Executor | None:
        """Return what runs the microbatches, or None for the sequential executor; at most one backend does."""
        return None

    def microbatch(self, stages: Sequence[nn.Module], last: bool) -> AbstractContextManager[Any]:
        """Return a context around forward and backward of one microbatch of the sequential executor."""
        return nullcontext()

    def finish_gradients(self, stages: Sequence[nn.Module], ctx: Context) -> None:
        """Complete the gradients after the last microbatch: tied embeddings, partial sums, unscaling."""

    def optimizer(self, optimizer: Optimizer, stages: Sequence[nn.Module], ctx: Context) -> Optimizer:
        """Return the optimizer to use: sharded, offloaded, compressed."""
        return optimizer

    def gradient_divisor(self, ctx: Context) -> float:
        """Return what this backend divides the sum of gradients over ranks by; the loss is multiplied by it."""
        return 1.0

    def state(self) -> dict[str, Any]:
        """Return JSON-safe state that a checkpoint must hold, the same on every rank."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take back what ``state`` returned."""

    def cost(self, facts: Facts, ctx: Context) -> Cost:
        """Return an estimate of what this backend costs."""
        return Cost()


class Model(Protocol):
    """A ``torch.nn.Module`` that can be trained. Its fully qualified parameter names are its only identity.

    Only the call is required; parallelisms that need more refuse a model without it.

    It is built on the meta device. Every module that owns parameters or buffers directly must fill *all* of them in
    ``reset_parameters()`` with torch's global generator, as torch's own layers do: it is called once per module, with
    the generator seeded from the module's name, so that values do not depend on the layout.

    ``features`` are words that parallelisms look for: ``"split"`` (``split`` works), ``"tied_embeddings"``,
    ``"documents"`` (the call takes ``positions`` and ``documents``; without it ``data.packing`` is refused).
    """

    features: frozenset[str]

    def __call__(self, tokens_BS: Tensor, **extras: Tensor) -> Tensor:
        """Return ``logits_BSV`` for int64 tokens."""
        ...

    def layer_names(self) -> Sequence[str]:
        """Return the fully qualified names of the repeated blocks, in order."""
        ...

    def flops_per_token(self, seq_len: int) -> float:
        """Return floating-point operations per token of forward and backward, without recomputation."""
        ...

    def split(self, bounds: Sequence[int]) -> Sequence[nn.Module]:
        """Return stages: number i holds the layers [bounds[i], bounds[i + 1]), the first the embedding, the last the head.

        Stages keep the fully qualified names and share the parameters of the model, which must not be used afterwards.
        Each maps tokens or hidden states (``hidden_BSD``) to hidden states or logits.
        """
        ...

    def tensor_plan(self) -> Mapping[str, Any]:
        """Return how tensor parallelism shards each submodule, by name pattern; empty where it cannot."""
        ...


BuildModel = Callable[..., Any]
"""``build(options: Mapping[str, object], *, vocab_size: int, seq_len: int) -> Model``, called on the meta device."""


class Callback:
    """Watches a training run; every method may be left out. ``run`` is the running ``trainer.loop.Run``."""

    def on_run_start(self, run: Any) -> None:
        """Before the first step, after a checkpoint was loaded."""

    def on_step_end(self, run: Any, report: Any) -> None:
        """After every step, on every rank. Keep it short: the accelerator waits."""

    def on_evaluation(self, run: Any, report: Any) -> None:
        """After every evaluation."""

    def on_save(self, run: Any, step: int) -> None:
        """After a checkpoint was committed."""

    def on_run_end(self, run: Any) -> None:
        """After the last step, also after an error; of all callbacks, whichever of them fail."""


BuildCallback = Callable[..., Callback]
"""``build(**options) -> Callback``."""


def build_backend(kind: type[Parallelism], options: Mapping[str, Any]) -> Parallelism:
    """Make a parallelism from its options.

    Raises:
        SettingsError: it has no such option; names those that it has.
    """
    known = [name for name in inspect.signature(kind).parameters if name not in ("args", "kwargs")]
    for key in options:
        if key not in known:
            offer = f"it has {', '.join(known)}" if known else "it has no options"
            raise SettingsError(f"parallelism {kind.name!r} has no option {key!r}", hint=offer)
    return kind(**options)
