"""The default executor: microbatches one after the other, gradients synchronised at the last."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from trainer.contracts import Batch, Loss, Parallelism


class SequentialExecutor:
    """Runs all stages of this rank on each microbatch in turn."""

    def __init__(
        self, stages: Sequence[nn.Module], loss: Loss, backends: Sequence[Parallelism], num_microbatches: int
    ) -> None:
        self._stages, self._loss, self._backends = stages, loss, backends
        self._num_microbatches = num_microbatches

    def run(self, batch: Batch, *, scale: Tensor) -> Tensor:
        """Add the gradients of ``loss_sum * scale``; return the loss sum."""
        total = torch.zeros((), dtype=torch.float64, device=batch["tokens"].device)
        microbatches = list(split_batch(batch, self._num_microbatches))
        for index, microbatch in enumerate(microbatches):
            with ExitStack() as around:
                for backend in self._backends:
                    around.enter_context(backend.microbatch(self._stages, index == len(microbatches) - 1))
                loss_sum = self._forward(microbatch)
                (loss_sum * scale.to(loss_sum.dtype)).backward()  # type: ignore[no-untyped-call]
            total += loss_sum.detach()
        return total

    def evaluate(self, batch: Batch) -> Tensor:
        """Return the loss sum without gradients."""
        total = torch.zeros((), dtype=torch.float64, device=batch["tokens"].device)
        for microbatch in split_batch(batch, self._num_microbatches):
            total += self._forward(microbatch)
        return total

    def _forward(self, microbatch: Batch) -> Tensor:
        inputs = dict(microbatch)
        labels_BS, x = inputs.pop("labels"), inputs.pop("tokens")
        for stage in self._stages:
            x = stage(x, **inputs)
        return self._loss(x, labels_BS)[0]


def split_batch(batch: Batch, num_microbatches: int) -> Iterator[Batch]:
    """Yield the microbatches of a batch: consecutive rows, as equal as possible, none empty."""
    rows = batch["tokens"].shape[0]
    size = -(-rows // num_microbatches)
    for start in range(0, rows, size):
        yield {name: tensor[start : start + size] for name, tensor in batch.items()}
