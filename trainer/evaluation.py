"""The loss on a held-out corpus: the callback that ``[evaluation]`` asks for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from iostack.errors import RunError
from iostack.loader.order.planned import Source
from trainer.contracts import Callback
from trainer.metrics import JsonLines, StepMetrics
from trainer.run import Run
from trainer.settings import parse_interval
from trainer.setup import open_held_out, open_loader


@dataclass(frozen=True)
class EvaluationMetrics:
    """One line of ``evaluation.jsonl``: the mean loss over ``tokens`` valid tokens of ``batches`` batches."""

    step: int
    evaluation_loss: float
    tokens: int
    batches: int


class Evaluation(Callback):
    """Evaluates every so many steps, and at the last one, always on the same batches in the same order.

    ``steps`` batches of ``data.batch_size`` are used, or one whole pass if 0. Ranks whose part of the pass ends early
    go on with rows that are not valid until all have ended. The batches are the same for every number of ranks, since
    the lanes are those of one rank; text that is tokenised on the fly costs more where the ranks do not divide these
    (8 to 64, a power of two): ranks that share a lane all tokenise it.
    """

    def __init__(
        self,
        *,
        uri: str,
        every: str = "500 steps",
        steps: int = 0,
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        self._uri = uri
        self._storage_options = storage_options or {}
        self._every = parse_interval(every).steps
        self._steps = steps

    def on_run_start(self, run: Run) -> None:
        """Open the corpus: a URI that cannot be read ends the run here, not hours later."""
        data = run.settings.data.model_copy(update={"lanes": "auto", "phases": (), "skip": "", "filters": ()})
        source = Source(open_held_out(self._uri, run.settings.data, self._storage_options))
        with open_loader([source], data, data_rank=0, data_ranks=1, device=torch.device("cpu")) as alone:
            lanes = alone.lanes
        self._loader = open_loader(
            [source],
            data.model_copy(update={"lanes": lanes}),
            data_rank=run.program.data_rank,
            data_ranks=run.program.data_ranks,
            device=run.program.device,
            epochs=1,
        )
        self._start = self._loader.state_dict()
        self._lines = JsonLines(run.folder.evaluations, last_step=run.step) if run.folder else None

    def on_step_end(self, run: Run, report: StepMetrics) -> None:
        """Evaluate if it is time to."""
        is_due = self._every and report.step % self._every == 0
        if is_due or report.step == run.settings.train.steps:
            self._evaluate(run, report.step)

    def on_run_end(self, run: Run) -> None:
        """Close the file and the loader."""
        if hasattr(self, "_loader"):
            self._loader.close()
            if self._lines:
                self._lines.close()

    def _evaluate(self, run: Run, step: int) -> None:
        loss_sum, tokens, batches = 0.0, 0, 0
        for batch in self._batches(run):
            batch_loss_sum, num_valid = run.program.evaluate(batch)
            loss_sum, tokens, batches = loss_sum + batch_loss_sum, tokens + num_valid, batches + 1
        if tokens == 0:
            raise RunError(f"evaluation.uri = {self._uri!r} gives no tokens", hint="give a longer corpus")
        metrics = EvaluationMetrics(step, loss_sum / tokens, tokens, batches)
        if self._lines:
            self._lines.write(asdict(metrics))
            self._lines.sync()  # a checkpoint of this step may follow
        run.say(f"step {step}  evaluation loss {metrics.evaluation_loss:.4f} over {tokens:,} tokens")
        run.evaluated(metrics)

    def _batches(self, run: Run) -> Iterator[dict[str, Tensor]]:
        """Yield batches until no rank has any left, as many on every rank."""
        self._loader.load_state_dict(self._start)
        batches: Iterator[dict[str, Any]] = iter(self._loader)
        count = 0
        while not self._steps or count < self._steps:
            batch = next(batches, None)
            left = torch.tensor([batch is not None], dtype=torch.int64)
            if run.world.size > 1:
                dist.all_reduce(left, op=dist.ReduceOp.MAX)
            if not left.item():
                return
            yield self._padding(run) if batch is None else batch
            count += 1

    def _padding(self, run: Run) -> dict[str, Tensor]:
        rows = run.settings.data.batch_size // run.program.data_ranks
        shape = (rows, run.settings.data.seq_len + 1)
        padding = {"tokens": torch.zeros(shape, dtype=torch.int64), "valid": torch.zeros(rows, dtype=torch.bool)}
        if run.settings.data.packing != "none":
            padding["position_ids"] = torch.arange(run.settings.data.seq_len, dtype=torch.int32).repeat(rows, 1)
        return padding
