"""The model "decoder": RMSNorm, rotary positions, grouped-query attention, SwiGLU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import iostack


@iostack.hookimpl
def iostack_models() -> Mapping[str, Any]:
    """Offer ``[model] name = "decoder"``; its options are ``trainer.model.options.DecoderOptions``."""
    return {"decoder": build}


def build(options: Mapping[str, object], *, vocab_size: int, seq_len: int) -> Any:
    """Build the decoder; torch is imported only here."""
    from trainer.model.decoder import build_decoder

    return build_decoder(options, vocab_size=vocab_size, seq_len=seq_len)
