"""Small steps on a local folder, for tests of what happens to them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from trainer.checkpoint import Checkpointer, Restored


def tensors_of(step: int) -> dict[str, torch.Tensor]:
    """Return a few tensors, of more than two blocks together, with values that belong to ``step``."""
    return {
        "layer.weight": torch.arange(300_000, dtype=torch.float32).reshape(500, 600) + step,
        "layer.bias": torch.full((600,), step, dtype=torch.bfloat16),
        "moment": torch.arange(200_000, dtype=torch.float64) * step,
        "count": torch.tensor(step),
    }


def save_steps(folder: Path | str, *steps: int, keep: int = 0, **options: Any) -> None:
    """Save steps as one start of the run that goes on from what is there, if anything is."""
    checkpoints = Checkpointer(str(folder), keep=keep, **options)
    checkpoints.begin({"model": "test"})
    checkpoints.load(tensors_of(0))
    for step in steps:
        checkpoints.save(step, tensors_of(step), {"position": step * 10}, settings={"dim": 600})
    checkpoints.close()


def load(folder: Path | str, **options: Any) -> Restored | None:
    """Load the newest usable step and check that every tensor is that step's."""
    tensors = {name: torch.zeros_like(tensor) for name, tensor in tensors_of(0).items()}
    restored = Checkpointer(str(folder), **options).load(tensors)
    if restored is not None:
        assert restored.state == {"position": restored.step * 10}
        for name, expected in tensors_of(restored.step).items():
            assert torch.equal(tensors[name], expected), name
    return restored


def loaded_step(folder: Path | str, **options: Any) -> int | None:
    restored = load(folder, **options)
    return None if restored is None else restored.step
