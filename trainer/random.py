"""Random numbers per logical stream: a stream's name and a coordinate give the seed, so nothing has to be saved.

``stream_seed(seed, "init", "layers.3.attention.query")`` is the same on every rank, layout and world size.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def stream_seed(seed: int, stream: str, *coordinate: str | int) -> int:
    """Return a 63-bit seed for one coordinate of a stream: a keyed hash of all three."""
    name = json.dumps([seed, stream, *coordinate]).encode()
    return int.from_bytes(hashlib.blake2b(name, digest_size=8, person=b"iostack.rng").digest(), "little") >> 1


def stream_generator(seed: int, stream: str, *coordinate: str | int) -> torch.Generator:
    """Return a CPU generator for one coordinate of a stream."""
    import torch

    return torch.Generator().manual_seed(stream_seed(seed, stream, *coordinate))
