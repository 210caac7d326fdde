"""Where documents lie in packed batches, in the forms that attention kernels take: all from ``position_ids``.

    loader = iostack.Loader(corpus, batch_size=8, seq_len=2048, packing="best_fit")
    for batch in loader:
        offsets, longest = cu_seqlens(batch["position_ids"])          # flash_attn_varlen_func, varlen_attn
        documents = document_ids(batch["position_ids"])               # flex_attention, or any mask

Besides ``tokens`` int64[b, seq_len + 1], packed batches hold ``position_ids`` int32[b, seq_len], which are 0 where a document,
or the rest of one that began in another row, begins, and count up from there; and ``loss_mask`` bool[b, seq_len], False where the
label ``tokens[:, 1:]`` belongs to another document or to padding. Padding has token 0 and counts as one more document, so that
no row of attention is empty. Importing this imports torch.
"""

from __future__ import annotations

import torch
from torch import Tensor


def document_ids(position_ids: Tensor) -> Tensor:
    """Return the number of the document at each position: int64[b, s], from 0 in every row, on the same device.

    Positions attend to each other where the numbers are equal, and the causal order allows it.
    """
    return (position_ids == 0).cumsum(dim=1) - 1


def cu_seqlens(position_ids: Tensor, *, max_documents: int | None = None) -> tuple[Tensor, int]:
    """Return where each document begins in the flattened batch, and the end, with a bound of their lengths.

    The first is int32[documents + 1], on the same device; its length depends on the data, so the device must be waited for.
    With ``max_documents`` it is int32[max_documents + 1] whatever the data, and nothing waits, as CUDA graphs need: the
    documents that are not there are empty ones at the end. The batch must not hold more. The second is ``seq_len``.
    """
    begins = (position_ids == 0).flatten()
    total, seq_len = begins.numel(), position_ids.shape[1]
    if max_documents is None:
        return torch.nn.functional.pad(begins.nonzero().squeeze(1), (0, 1), value=total).int(), seq_len
    numbers = torch.where(begins, begins.cumsum(0) - 1, max_documents)
    offsets = torch.full((max_documents + 1,), total, dtype=torch.int32, device=begins.device)
    positions = torch.arange(total, dtype=torch.int32, device=begins.device)
    return offsets.scatter_reduce_(0, numbers, torch.where(begins, positions, total), "amin"), seq_len
