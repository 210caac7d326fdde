"""The command ``iostack train``, and what ``iostack plan`` knows of its runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import iostack

if TYPE_CHECKING:
    import click

    from iostack.preview.contracts import ReadRun


@iostack.hookimpl
def iostack_commands() -> Sequence[click.Command]:
    """Offer ``iostack train``."""
    from trainer.command import train

    return [train]


@iostack.hookimpl
def iostack_runs() -> Sequence[ReadRun]:
    """Offer to read the settings files and run folders of ``iostack train``."""
    from trainer.planned_run import read_run

    return [read_run]
