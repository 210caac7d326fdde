"""Measure each step, and agree on it: sums over ranks, and what any rank asks of all.

Two small integer all-reduces per step over gloo, sent together: one of sums, one of maxima.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from trainer.metrics import StepMetrics, digest_hex
from trainer.peak import peak_flops
from trainer.program import Program
from trainer.step import StepReport

_MICRO = 1_000_000


@dataclass(frozen=True)
class Requests:
    """What any rank asks of all after a step: to save, and to stop because of a signal (its number, or 0)."""

    save: bool
    stop_signal: int


class Recorder:
    """Turns a step into one line of metrics, the same on every rank. All ranks call it together."""

    def __init__(self, program: Program, *, rank: int, num_ranks: int, dtype: str) -> None:
        self._program = program
        self._num_ranks = num_ranks
        self._is_distributed = num_ranks > 1
        self._speaks_for_its_data = self._first_of_data_rank(rank)
        peak = peak_flops(program.device, dtype)
        self._peak_flops = peak * num_ranks if peak else None
        self._started = 0.0

    def begin_step(self) -> None:
        """Start the clock, before the batch is asked for."""
        self._started = time.perf_counter()

    def end_step(
        self,
        report: StepReport,
        batch: Mapping[str, Tensor],
        *,
        step: int,
        position: int,
        data_wait_s: float,
        wants_save: bool,
        stop_signal: int,
    ) -> tuple[StepMetrics, Requests]:
        """Return the line of metrics of a step, and what the ranks ask for."""
        ids = batch["sample_ids"]
        digest = int(ids[batch["valid"].to(ids.device)].sum()) if self._speaks_for_its_data else 0
        seconds = time.perf_counter() - self._started
        maxima = [int(data_wait_s * _MICRO), self._memory_bytes(), int(wants_save), stop_signal]
        [digest_total], [wait, memory_bytes, saves, stops] = self._reduce([digest], maxima)
        tokens_per_s = report.num_valid / seconds
        flops = tokens_per_s * self._program.flops_per_token
        metrics = StepMetrics(
            step=step,
            loss=report.loss,
            grad_norm=report.grad_norm,
            learning_rate=report.learning_rate,
            tokens=report.num_valid,
            seconds=round(seconds, 6),
            data_wait_s=wait / _MICRO,
            position=position,
            samples_digest=digest_hex(digest_total),
            tokens_per_s=round(tokens_per_s, 1),
            memory_bytes=memory_bytes,
            mfu=round(flops / self._peak_flops, 4) if self._peak_flops else None,
        )
        return metrics, Requests(save=bool(saves), stop_signal=stops)

    def _reduce(self, sums: Sequence[int], maxima: Sequence[int]) -> tuple[list[int], list[int]]:
        """Return sums (wrapped to 64 bits) and maxima over all ranks."""
        if not self._is_distributed:
            return list(sums), list(maxima)
        summed, largest = torch.tensor(sums, dtype=torch.int64), torch.tensor(maxima, dtype=torch.int64)
        sending = [
            dist.all_reduce(summed, op=dist.ReduceOp.SUM, async_op=True),
            dist.all_reduce(largest, op=dist.ReduceOp.MAX, async_op=True),
        ]
        for work in sending:
            work.wait()
        return summed.tolist(), largest.tolist()

    def _first_of_data_rank(self, rank: int) -> bool:
        """Whether no lower rank reads the same part of each batch: tensor and pipeline peers do."""
        if not self._is_distributed:
            return True
        data_ranks = [torch.zeros(1, dtype=torch.int64) for _ in range(self._num_ranks)]
        dist.all_gather(data_ranks, torch.tensor([self._program.data_rank]))
        return [int(data_rank) for data_rank in data_ranks].index(self._program.data_rank) == rank

    def _memory_bytes(self) -> int:
        if self._program.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._program.device)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
