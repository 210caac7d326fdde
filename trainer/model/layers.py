"""Layers whose initial values are stated: projections, the embedding, the gated feed-forward."""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn.functional import silu

from trainer.model.options import DecoderOptions


class Projection(nn.Linear):
    """A linear map without bias, drawn from N(0, 1/inputs) (PaLM, arXiv:2204.02311, section 5.1).

    ``residual_layers`` marks one that writes to the residual stream: its deviation is divided by sqrt(2 * layers), since
    that many of them add up (GPT-2, Radford et al. 2019, section 2.3).
    """

    def __init__(self, inputs: int, outputs: int, *, residual_layers: int | None = None) -> None:
        self.std = 1 / math.sqrt(inputs * (2 * residual_layers if residual_layers else 1))
        super().__init__(inputs, outputs, bias=False)

    def reset_parameters(self) -> None:
        """Draw the weight."""
        nn.init.normal_(self.weight, std=self.std)


class Embedding(nn.Embedding):
    """Token embeddings drawn from N(0, 1/dim), so that tied logits start with variance 1."""

    def reset_parameters(self) -> None:
        """Draw the weight."""
        nn.init.normal_(self.weight, std=1 / math.sqrt(self.embedding_dim))


class FeedForward(nn.Module):
    """SwiGLU: ``down(silu(gate(x)) * up(x))`` (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, options: DecoderOptions) -> None:
        super().__init__()
        self.gate = Projection(options.dim, options.hidden_dim)
        self.up = Projection(options.dim, options.hidden_dim)
        self.down = Projection(options.hidden_dim, options.dim, residual_layers=options.layers)

    def forward(self, x_BSD: Tensor) -> Tensor:
        projected: Tensor = self.down(silu(self.gate(x_BSD)) * self.up(x_BSD))
        return projected
