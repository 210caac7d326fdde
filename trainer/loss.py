"""Losses as (sum, weight) pairs, and the labels they are computed from.

Sums add up over microbatches, ranks and pipeline stages without knowing how many each holds; the mean is taken once, at
the end, by the number of valid labels counted before forward.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from iostack.packing import document_ids
from trainer.contracts import IGNORED, Batch


def label_batch(batch: Mapping[str, Tensor], device: torch.device) -> Batch:
    """Turn a loader's batch into what executors consume, on the device.

    ``tokens`` int64[b, s + 1] become tokens[:, :-1] and labels[:, 1:]. Rows where ``valid`` bool[b] is False, and
    positions where the optional ``loss_mask`` bool[b, s] is False, get the label ``IGNORED``. The optional ``position_ids``
    int32[b, s] of packed documents become ``positions``, and ``documents`` int64[b, s], which number them in each row.
    """
    tokens = batch["tokens"].to(device, non_blocking=True)
    labels = tokens[:, 1:]
    counted = torch.ones_like(labels, dtype=torch.bool)
    if "valid" in batch:
        counted &= batch["valid"].to(device, non_blocking=True).unsqueeze(1)
    if "loss_mask" in batch:
        counted &= batch["loss_mask"].to(device, non_blocking=True)
    labelled = {"tokens": tokens[:, :-1].contiguous(), "labels": labels.masked_fill(~counted, IGNORED)}
    if "position_ids" in batch:
        positions = batch["position_ids"].to(device, non_blocking=True)
        labelled |= {"positions": positions, "documents": document_ids(positions)}
    return labelled


def count_valid(batch: Batch) -> Tensor:
    """Return the number of labels that have a loss: int64, 0-dimensional, known before forward."""
    return (batch["labels"] != IGNORED).sum()


def cross_entropy_sum(logits_BSV: Tensor, labels_BS: Tensor) -> tuple[Tensor, Tensor]:
    """Return the summed cross entropy over valid labels (at least float32), and their number."""
    logits = logits_BSV.flatten(0, 1)
    if logits.dtype in (torch.bfloat16, torch.float16):
        logits = logits.float()
    loss_sum = cross_entropy(logits, labels_BS.flatten(), ignore_index=IGNORED, reduction="sum")
    return loss_sum, (labels_BS != IGNORED).sum()
