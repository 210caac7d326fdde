"""The run that lets DDP settle its buckets, on models that others wrote."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from iostack_ddp import _settle_buckets
from torch import Tensor, nn

from iostack.errors import PluginError


class Convolution(nn.Module):
    """Needs at least three tokens, and refuses sequences of another length than ``seq_len``."""

    def __init__(self, seq_len: int) -> None:
        super().__init__()
        self.seq_len = seq_len
        self.embedding = nn.Embedding(8, 4)
        self.convolution = nn.Conv1d(4, 8, kernel_size=3)

    def forward(self, tokens_BS: Tensor) -> Tensor:
        if tokens_BS.shape[1] != self.seq_len:
            raise ValueError(f"made for {self.seq_len} tokens")
        logits: Tensor = self.convolution(self.embedding(tokens_BS).transpose(1, 2))
        return logits


def context(seq_len: int) -> Any:
    return SimpleNamespace(request=SimpleNamespace(seq_len=seq_len), device=torch.device("cpu"))


def test_the_model_sees_a_sequence_of_the_length_that_it_is_trained_on_and_keeps_no_gradient() -> None:
    model = Convolution(5)
    _settle_buckets(model, context(5))
    assert model.training
    assert [parameter.grad for parameter in model.parameters()] == [None] * 3


def test_a_model_that_cannot_do_it_is_told_the_way_around() -> None:
    with pytest.raises(PluginError, match="ValueError: made for 5 tokens") as caught:
        _settle_buckets(Convolution(5), context(7))
    assert "unused_parameters = true" in caught.value.hint
