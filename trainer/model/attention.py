"""Causal grouped-query attention with rotary positions.

Shapes: B sequences, S positions, D width, H query heads, K key and value heads, E width of a head.
Sources: RoFormer (Su et al. 2021, arXiv:2104.09864) in the half-split layout of GPT-NeoX and Llama checkpoints on the
Hugging Face hub; grouped queries (Ainslie et al. 2023, arXiv:2305.13245).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from trainer.model.layers import Projection
from trainer.model.options import DecoderOptions


class Rotary(nn.Module):
    """Tables of cosines and sines of position times frequency: float[S, E/2], not part of a checkpoint."""

    cosine: Tensor
    sine: Tensor

    def __init__(self, head_dim: int, seq_len: int, theta: float) -> None:
        super().__init__()
        self.head_dim, self.seq_len, self.theta = head_dim, seq_len, theta
        self.register_buffer("cosine", torch.empty(seq_len, head_dim // 2), persistent=False)
        self.register_buffer("sine", torch.empty(seq_len, head_dim // 2), persistent=False)

    def reset_parameters(self) -> None:
        """Fill the tables, computed in float64."""
        exponents = torch.arange(0, self.head_dim, 2, dtype=torch.float64) / self.head_dim
        angles = torch.outer(torch.arange(self.seq_len, dtype=torch.float64), self.theta**-exponents)
        self.cosine.copy_(angles.cos())
        self.sine.copy_(angles.sin())

    def forward(self, seq_len: int, positions_BS: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return cosines and sines that broadcast over [B, S, heads, E/2]."""
        if positions_BS is None:
            return self.cosine[:seq_len].unsqueeze(1), self.sine[:seq_len].unsqueeze(1)
        return self.cosine[positions_BS].unsqueeze(2), self.sine[positions_BS].unsqueeze(2)


def rotate(x_BSHE: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Turn each pair (e, e + E/2) of a head by its position's angle."""
    first, second = x_BSHE.chunk(2, dim=-1)
    turned = torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1)
    return turned.to(x_BSHE.dtype)


def inside_documents(documents_BS: Tensor) -> Tensor:
    """Return bool[B, 1, S, S]: whether a position (third) attends to another: of its own document, and not after it.

    It takes B * S**2 bytes, once for all layers.
    """
    same_BSS = documents_BS.unsqueeze(2) == documents_BS.unsqueeze(1)
    return same_BSS.tril().unsqueeze(1)


class Attention(nn.Module):
    """Attention of every position to itself and those before it, as far as a mask allows. Head counts follow from the weights' shapes."""

    def __init__(self, options: DecoderOptions) -> None:
        super().__init__()
        self.head_dim = options.head_dim
        dim, kv_dim = options.dim, options.num_kv_heads * options.head_dim
        self.query = Projection(dim, dim)
        self.key = Projection(dim, kv_dim)
        self.value = Projection(dim, kv_dim)
        self.output = Projection(dim, dim, residual_layers=options.layers)

    def forward(self, x_BSD: Tensor, cosine: Tensor, sine: Tensor, mask_B1SS: Tensor | None = None) -> Tensor:
        query_BSHE = rotate(self.query(x_BSD).unflatten(-1, (-1, self.head_dim)), cosine, sine)
        key_BSKE = rotate(self.key(x_BSD).unflatten(-1, (-1, self.head_dim)), cosine, sine)
        value_BSKE = self.value(x_BSD).unflatten(-1, (-1, self.head_dim))
        mixed_BHSE = scaled_dot_product_attention(
            query_BSHE.transpose(1, 2),
            key_BSKE.transpose(1, 2),
            value_BSKE.transpose(1, 2),
            attn_mask=mask_B1SS,
            is_causal=mask_B1SS is None,
            enable_gqa=key_BSKE.shape[2] != query_BSHE.shape[2],
        )
        output_BSD: Tensor = self.output(mixed_BHSE.transpose(1, 2).flatten(2))
        return output_BSD
