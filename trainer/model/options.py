"""The sizes of the decoder: ``[model]`` in the settings, checked before anything is built."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from iostack.errors import SettingsError
from iostack.suggest import closest


class DecoderOptions(BaseModel):
    """Sizes of the decoder. The defaults are a small byte-level model that trains on a laptop."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dim: int = Field(default=256, gt=0)
    """Width of the residual stream."""
    layers: int = Field(default=4, gt=0)
    """Number of blocks, each attention and feed-forward."""
    heads: int = Field(default=4, gt=0)
    """Query heads; ``dim / heads`` is the head's width and must be even."""
    kv_heads: int | None = Field(default=None, gt=0)
    """Key and value heads; fewer than ``heads`` save memory in generation. Unset: as many as ``heads``."""
    hidden: int | None = Field(default=None, gt=0)
    """Width inside the feed-forward. Unset: 8/3 of ``dim``, rounded up to a multiple of 32."""
    tied_embeddings: bool = False
    """Use the embedding as the output matrix too: fewer parameters, better for small models."""
    rope_theta: float = Field(default=10_000.0, gt=1.0)
    """Longest wavelength of the rotary positions; raise it for sequences beyond some 8192 tokens."""
    norm_epsilon: float = Field(default=1e-5, gt=0.0)
    """Added to the mean square inside every norm."""

    @model_validator(mode="after")
    def _fit(self) -> DecoderOptions:
        if self.dim % self.heads or (self.dim // self.heads) % 2:
            raise ValueError(f"dim {self.dim} / heads {self.heads} must be an even whole number")
        if self.heads % self.num_kv_heads:
            raise ValueError(f"kv_heads {self.num_kv_heads} must divide heads {self.heads}")
        return self

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.dim // self.heads

    @property
    def num_kv_heads(self) -> int:
        """Number of key and value heads."""
        return self.kv_heads or self.heads

    @property
    def hidden_dim(self) -> int:
        """Width inside the feed-forward."""
        return self.hidden or -(-8 * self.dim // 96) * 32


def parse_options(options: Mapping[str, object]) -> DecoderOptions:
    """Check the options of the decoder.

    Raises:
        SettingsError: an option is unknown (names the nearest) or its value impossible.
    """
    known = list(DecoderOptions.model_fields)
    for key in options:
        if key not in known:
            raise SettingsError(f"the model 'decoder' has no option {key!r}", hint=closest(key, known))
    try:
        return DecoderOptions.model_validate(dict(options))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "model"
        raise SettingsError(f"the model 'decoder': {where}: {first['msg'].removeprefix('Value error, ')}") from error
