"""The command ``iostack train``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import iostack

if TYPE_CHECKING:
    import click


@iostack.hookimpl
def iostack_commands() -> Sequence[click.Command]:
    """Offer ``iostack train``."""
    from trainer.command import train

    return [train]
