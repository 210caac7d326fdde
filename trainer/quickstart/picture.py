"""The picture of a run: its loss, where it was killed, and what a model of single bytes reaches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from iostack.errors import MissingExtraError


def draw_loss(
    path: Path,
    steps: Sequence[Mapping[str, Any]],
    evaluations: Sequence[Mapping[str, Any]],
    *,
    killed_after: int,
    byte_frequency_loss: float,
) -> None:
    """Write the loss of ``steps`` (rows of metrics.jsonl) and of the held-out text as a PNG.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise MissingExtraError("a picture needs matplotlib", hint='pip install "iostack[plots]"') from error
    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5), dpi=120, layout="constrained")
    losses = [step["loss"] for step in steps]
    axes.plot([step["step"] for step in steps], losses, linewidth=1, label="training loss")
    if evaluations:
        xs = [row["step"] for row in evaluations]
        axes.plot(xs, [row["evaluation_loss"] for row in evaluations], "o-", label="held-out loss")
    axes.axhline(byte_frequency_loss, color="grey", linestyle=":", label="model of byte frequencies")
    axes.axvline(killed_after, color="tab:red", linestyle="--", linewidth=1, label="killed, then resumed")
    axes.set(xlabel="step", ylabel="nats per byte", title="A byte-level decoder on the standard library's sources")
    axes.set_ylim(0, max(losses) * 1.05)
    axes.set_xlim(left=0)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)
    pyplot.close(figure)
