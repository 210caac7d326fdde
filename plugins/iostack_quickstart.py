"""The command "quickstart": a real training run on this machine, killed and resumed, in a few minutes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

import iostack

_EXAMPLES = """\b
Examples:
  iostack quickstart
  iostack quickstart --folder /tmp/first-run --steps 1500
"""


@click.command(epilog=_EXAMPLES)
@click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("iostack-quickstart"),
    show_default=True,
    help="Everything is written there; a former run in it is replaced.",
)
@click.option("--steps", type=click.IntRange(min=24), default=300, show_default=True, help="Steps of the run.")
@click.option("--procs", type=click.IntRange(min=1, max=16), default=2, show_default=True, help="Processes.")
def quickstart(folder: Path, steps: int, procs: int) -> None:
    """Train a small language model on the standard library's sources; be killed, resume, and prove it lost nothing."""
    from trainer.quickstart.story import tell

    tell(folder, steps=steps, procs=procs)


@iostack.hookimpl
def iostack_commands() -> Sequence[click.Command]:
    """Offer ``iostack quickstart``."""
    return [quickstart]
