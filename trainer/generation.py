"""Sampling text from a model in training: the whole context again for each token, which is enough for a look."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from iostack.errors import RunError
from trainer.contracts import Context
from trainer.random import stream_generator


@torch.no_grad()
def sample_tokens(
    models: Sequence[nn.Module],
    prompt_ids: Sequence[int],
    num_tokens: int,
    *,
    ctx: Context,
    temperature: float,
    seed: int,
) -> list[int]:
    """Return ``num_tokens`` token ids that follow a prompt of at least one.

    The model sees the last ``seq_len`` tokens. The same arguments and weights give the same tokens.

    Raises:
        RunError: this rank holds only a part of the model.
    """
    parts = [axis for axis in ("pp", "dp_shard", "tp", "cp") if ctx.size(axis) > 1]
    if parts:
        raise RunError(
            f"no rank holds the whole model to generate with: it is split along {', '.join(parts)}",
            hint="load a checkpoint of it in one process",
        )
    if not prompt_ids:
        raise RunError("nothing to go on from: the prompt is empty", hint="give at least one token")
    generator = stream_generator(seed, "generate")
    ids = list(prompt_ids)
    for model in models:
        model.eval()
    for _ in range(num_tokens):
        x = torch.tensor([ids[-ctx.request.seq_len :]], device=ctx.device)
        for model in models:
            x = model(x)
        logits_V = x[0, -1].double().cpu()
        if temperature <= 0:
            ids.append(int(logits_V.argmax()))
        else:
            probabilities = torch.softmax(logits_V / temperature, dim=-1)
            ids.append(int(torch.multinomial(probabilities, 1, generator=generator)))
    return ids[len(prompt_ids) :]
