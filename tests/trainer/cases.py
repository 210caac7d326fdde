"""The runs that parity tests compare: what each asks for, and the batches they all see. Used by tests and workers."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from iostack.errors import RunError
from trainer.contracts import Request
from trainer.program import Program, build_program

ROWS, SEQ_LEN, VOCAB_SIZE, STEPS = 8, 12, 31, 4


@dataclass(frozen=True)
class Case:
    """One layout. ``tied``: with tied embeddings. ``clip``: the gradient clip."""

    name: str
    world_size: int = 1
    axes: dict[str, int] = field(default_factory=dict)
    use: tuple[str, ...] = ()
    microbatch_size: int | None = None
    options: dict[str, dict[str, object]] = field(default_factory=dict)
    tied: bool = False
    clip: float | None = None
    dtype: str = "fp64"

    def build(self, seed: int = 0) -> Program:
        """Build the program on this process."""
        request = Request(
            batch_size=ROWS,
            seq_len=SEQ_LEN,
            world_size=self.world_size,
            axes=self.axes,
            use=self.use,
            microbatch_size=self.microbatch_size,
            dtype=self.dtype,
            options=self.options,
        )
        sizes = {"dim": 32, "layers": 4, "heads": 4, "kv_heads": 2, "tied_embeddings": self.tied}
        return build_program(
            request,
            model_name="decoder",
            model_options=sizes,
            vocab_size=VOCAB_SIZE,
            device="cpu",
            seed=seed,
            gradient_clip=self.clip,
        )


def batch_of_step(step: int, *, data_rank: int, data_ranks: int) -> dict[str, torch.Tensor]:
    """Return this data rank's rows of a step's batch.

    Valid tokens are uneven over rows; in step 1 every second row is padding, so that with two data ranks one has no
    valid token at all. From step 2 on documents are packed.
    """
    generator = torch.Generator().manual_seed(1000 + step)
    tokens = torch.randint(0, VOCAB_SIZE, (ROWS, SEQ_LEN + 1), generator=generator)
    loss_mask = torch.rand(ROWS, SEQ_LEN, generator=generator) < torch.linspace(0.1, 1.0, ROWS).unsqueeze(1)
    valid = torch.ones(ROWS, dtype=torch.bool)
    if step == 1:
        valid[1::2] = False
    whole = {"tokens": tokens, "valid": valid, "loss_mask": loss_mask}
    if step >= 2:
        begins = torch.rand(ROWS, SEQ_LEN, generator=generator) < 0.3
        begins[:, 0] = True
        counted = torch.arange(SEQ_LEN).expand(ROWS, -1)
        whole["position_ids"] = counted - torch.where(begins, counted, 0).cummax(1).values
    return {name: tensor[data_rank::data_ranks] for name, tensor in whole.items()}


def learning_rate_of(step: int) -> float:
    """Return some learning rate, large enough that a wrong step shows in the next loss."""
    return 1e-2 / (step + 1)


def make_steps(program: Program, steps: range) -> list[dict[str, object]]:
    """Make some steps and return for each its losses, norms and the gradients that this rank holds."""
    records: list[dict[str, object]] = []
    for step in steps:
        batch = batch_of_step(step, data_rank=program.data_rank, data_ranks=program.data_ranks)
        evaluated = program.evaluate(batch)
        report = program.step(batch, learning_rate=learning_rate_of(step))
        records.append(
            {
                "loss": report.loss,
                "grad_norm": report.grad_norm,
                "num_valid": report.num_valid,
                "evaluated": evaluated,
                "gradients": {name: whole(gradient).clone() for name, gradient in gradients_of(program).items()},
            }
        )
    return records


def gradients_of(program: Program) -> dict[str, torch.Tensor]:
    """Return the gradients that this rank holds, by name."""
    named = program._parts.gradients.parameters.items()
    return {name: parameter.grad for name, parameter in named if parameter.grad is not None}


def generated_by(program: Program) -> list[int] | None:
    """Return a sample that this rank makes on its own, or None where it holds only a part of the model."""
    try:
        return program.generate([1, 2, 3], 5, temperature=1.0, seed=0)
    except RunError:
        return None


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return the full tensor of a distributed one."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


TWO_RANKS = (
    Case("ddp", 2, {"dp_replicate": 2}),
    Case("ddp, accumulation", 2, {"dp_replicate": 2}, microbatch_size=1),
    Case("ddp, clipped", 2, {"dp_replicate": 2}, clip=0.05),
    Case("replicate", 2, {"dp_replicate": 2}, ("replicate",)),
    Case("replicate, accumulation", 2, {"dp_replicate": 2}, ("replicate",), microbatch_size=1),
    Case("replicate, tied", 2, {"dp_replicate": 2}, ("replicate",), tied=True, clip=0.05),
    Case("recompute, ddp", 2, {"dp_replicate": 2}, ("recompute",)),
    Case("recompute, replicate", 2, {"dp_replicate": 2}, ("recompute", "replicate"), microbatch_size=2),
    Case("pipeline", 2, {"pp": 2}, microbatch_size=2),
    Case("pipeline, recompute, clipped", 2, {"pp": 2}, ("recompute",), microbatch_size=1, clip=0.05),
    Case("pipeline, tied", 2, {"pp": 2}, microbatch_size=2, tied=True, clip=0.05),
    Case("sharded step, ddp", 2, {"dp_replicate": 2}, ("sharded_step",)),
    Case("sharded step, replicate", 2, {"dp_replicate": 2}, ("sharded_step", "replicate"), microbatch_size=2),
    Case("sharded parameters", 2, {"dp_shard": 2}, microbatch_size=2, tied=True, clip=0.05),
)
FOUR_RANKS = (
    Case("ddp on 4", 4, {"dp_replicate": 4}, microbatch_size=1),
    Case("replicate on 4", 4, {"dp_replicate": 4}, ("replicate",)),
    Case("sharded parameters x replicas", 4, {"dp_replicate": 2, "dp_shard": 2}, ("recompute",), clip=0.05),
    Case("sharded parameters on 4", 4, {"dp_shard": 4}, clip=0.05),
    Case("pipeline x sharded parameters", 4, {"pp": 2, "dp_shard": 2}, microbatch_size=1, tied=True, clip=0.05),
    Case("pipeline x replicate", 4, {"pp": 2, "dp_replicate": 2}, microbatch_size=1),
    Case("pipeline x replicate, sharded step", 4, {"pp": 2, "dp_replicate": 2}, ("sharded_step",), microbatch_size=2),
)
