"""The decoder: a pre-norm transformer with RMSNorm, rotary positions, grouped-query attention and SwiGLU.

Shapes: B sequences, S positions, D width, V vocabulary. The pieces are those of Llama (Touvron et al. 2023,
arXiv:2302.13971).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import linear

from trainer.model.attention import Attention, Rotary, inside_documents
from trainer.model.layers import Embedding, FeedForward, Projection
from trainer.model.options import DecoderOptions, parse_options


class Block(nn.Module):
    """One layer: attention and feed-forward, each on the normed stream and added to it."""

    def __init__(self, options: DecoderOptions) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(options.dim, eps=options.norm_epsilon)
        self.attention = Attention(options)
        self.feed_forward_norm = nn.RMSNorm(options.dim, eps=options.norm_epsilon)
        self.feed_forward = FeedForward(options)

    def forward(self, x_BSD: Tensor, cosine: Tensor, sine: Tensor, mask_B1SS: Tensor | None = None) -> Tensor:
        x_BSD = x_BSD + self.attention(self.attention_norm(x_BSD), cosine, sine, mask_B1SS)
        hidden_BSD: Tensor = x_BSD + self.feed_forward(self.feed_forward_norm(x_BSD))
        return hidden_BSD


class Decoder(nn.Module):
    """A decoder, or one pipeline stage of it: ``layers`` says which blocks it holds.

    Maps int64 tokens [B, S] (a stage after the first: hidden states [B, S, D]) to logits [B, S, V] (a stage before the
    last: hidden states). ``positions`` int32 or int64[B, S] overrides the positions 0 to S - 1; attention stays
    inside runs of equal ``documents`` int64[B, S].
    """

    def __init__(self, options: DecoderOptions, *, vocab_size: int, seq_len: int, layers: range | None = None) -> None:
        super().__init__()
        self.options, self.vocab_size, self.seq_len = options, vocab_size, seq_len
        held = layers if layers is not None else range(options.layers)
        self.is_first, self.is_last = held.start == 0, held.stop == options.layers
        self.features = frozenset({"split", "documents"} | ({"tied_embeddings"} if options.tied_embeddings else set()))
        if self.is_first or (self.is_last and options.tied_embeddings):
            self.embedding = Embedding(vocab_size, options.dim)
        self.rotary = Rotary(options.head_dim, seq_len, options.rope_theta)
        self.layers = nn.ModuleDict({str(index): Block(options) for index in held})
        if self.is_last:
            self.norm = nn.RMSNorm(options.dim, eps=options.norm_epsilon)
        if self.is_last and not options.tied_embeddings:
            self.head = Projection(options.dim, vocab_size)

    def forward(self, x: Tensor, *, positions: Tensor | None = None, documents: Tensor | None = None) -> Tensor:
        x_BSD: Tensor = self.embedding(x) if self.is_first else x
        cosine, sine = self.rotary(x_BSD.shape[1], positions)
        mask_B1SS = None if documents is None else inside_documents(documents)
        for layer in self.layers.values():
            x_BSD = layer(x_BSD, cosine, sine, mask_B1SS)
        if not self.is_last:
            return x_BSD
        normed_BSD: Tensor = self.norm(x_BSD)
        if self.options.tied_embeddings:
            return linear(normed_BSD, self.embedding.weight)
        logits_BSV: Tensor = self.head(normed_BSD)
        return logits_BSV

    def layer_names(self) -> Sequence[str]:
        """Return the names of the blocks."""
        return [f"layers.{index}" for index in self.layers]

    def flops_per_token(self, seq_len: int) -> float:
        """Return 6 per weight of a matrix product, plus attention's 12 * layers * dim * seq_len (PaLM, appendix B)."""
        weights = sum(parameter.numel() for parameter in self.parameters() if parameter.ndim == 2)
        if not self.options.tied_embeddings:
            weights -= self.vocab_size * self.options.dim
        return 6.0 * weights + 12.0 * self.options.layers * self.options.dim * seq_len

    def split(self, bounds: Sequence[int]) -> Sequence[nn.Module]:
        """Return a stage for each [bounds[i], bounds[i + 1]); made anew, on the device of the surrounding context."""
        sizes: dict[str, Any] = {"vocab_size": self.vocab_size, "seq_len": self.seq_len}
        return [Decoder(self.options, layers=range(*pair), **sizes) for pair in pairwise(bounds)]

    def tensor_plan(self) -> Mapping[str, Any]:
        """Return nothing yet: no shipped parallelism shards tensors."""
        return {}


def build_decoder(options: Mapping[str, object], *, vocab_size: int, seq_len: int) -> Decoder:
    """Build the decoder on the device of the surrounding context.

    Raises:
        SettingsError: an option is unknown or impossible.
    """
    return Decoder(parse_options(options), vocab_size=vocab_size, seq_len=seq_len)
