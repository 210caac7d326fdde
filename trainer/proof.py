"""The proof that a run lost and repeated no sample: its whole order is computed again, without training.

The order is a pure function of the corpus and the settings; so one process that never stopped must find, at every step,
the samples that the run's ranks saw at it, across all kills and resumes.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from iostack.errors import CheckpointError, RunError
from trainer.checkpoint import Checkpointer
from trainer.metrics import digest_hex
from trainer.saving import RunState
from trainer.settings import Settings
from trainer.setup import open_loader, open_sources


@dataclass(frozen=True)
class Proof:
    """``samples`` were trained on in ``steps`` steps, ``distinct`` of them different."""

    steps: int
    samples: int
    distinct: int


def prove_samples(settings: Settings, run_dir: Path, progress: Callable[[int, int], None]) -> Proof:
    """Compare every line of the run's ``metrics.jsonl`` with the order computed anew.

    Raises:
        RunError: a step is missing, or its samples are not those of the order; names the step.
        CheckpointError: nothing was saved, so the number of lanes is not known.
    """
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    uri = settings.checkpoint.uri or str(run_dir / "checkpoints")
    saved = Checkpointer(uri, storage_options=settings.checkpoint.storage_options).latest()
    if saved is None:
        raise CheckpointError(f"{run_dir} holds no checkpoint")
    lanes = RunState.from_json(saved.state).loader["plan"]["lanes"]
    data = settings.data.model_copy(update={"lanes": lanes})
    loader = open_loader(open_sources(data), data, data_rank=0, data_ranks=1, device=torch.device("cpu"))
    batches = iter(loader)
    seen: set[int] = set()
    samples = 0
    for number, line in enumerate(lines, start=1):
        if line["step"] != number or line["position"] != loader.position:
            raise RunError(
                f"line {number} of metrics.jsonl is step {line['step']} at position {line['position']}, but position"
                f" {loader.position} comes next"
            )
        ids = next(batches)["sample_ids"].tolist()
        if digest_hex(sum(ids)) != line["samples_digest"]:
            raise RunError(f"step {number} was trained on other samples than the order has there")
        seen.update(ids)
        samples += len(ids)
        progress(number, len(lines))
    loader.close()
    return Proof(steps=len(lines), samples=samples, distinct=len(seen))
