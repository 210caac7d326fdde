"""A picture of what was measured: a bar for each stage alone, and a line for the whole."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from iostack.errors import MissingExtraError, UsageError
from iostack.stages import STAGES

# Okabe and Ito: told apart by people who do not see red or green.
_BAR, _SLOWEST, _LIMIT, _INK, _SOFT = "#56B4E9", "#D55E00", "#BBBBBB", "#222222", "#666666"


def check_picture(path: Path) -> None:
    """Refuse a picture that could not be written, before anything is measured.

    Raises:
        MissingExtraError: matplotlib is not installed. UsageError: the file's name or folder will not do.
    """
    if find_spec("matplotlib") is None:
        raise MissingExtraError("a picture needs matplotlib", hint='pip install "iostack[plots]"')
    if path.suffix not in (".svg", ".png"):
        raise UsageError(f"{path} is no picture that can be drawn", hint="name a .svg or .png file")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"the picture {path} cannot be written: no such folder", hint="name a folder that exists")


def draw(facts: Mapping[str, Any], path: Path) -> None:
    """Write the picture of a report of ``iostack bench`` as SVG or PNG, by the name of the file.

    Raises:
        UsageError: the file cannot be written. See also ``check_picture``.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    alone, whole = facts["alone"], facts["samples_per_s"]
    names = [name for name in STAGES if name in alone] + [name for name in alone if name not in STAGES]
    speeds = [max(alone[name]["samples_per_s"], 1e-9) for name in names]
    height = 1.9 + 0.48 * len(names)
    with pyplot.rc_context({"font.size": 11, "svg.fonttype": "none", "font.family": "DejaVu Sans"}):
        figure, axes = pyplot.subplots(figsize=(9, height))
        colours = [_colour(name, facts["held_back_by"]) for name in names]
        axes.barh(names, speeds, color=colours, height=0.62, zorder=2)
        axes.set_xscale("log")
        axes.set_xlim(min([whole, *speeds]) / 3, max([whole, *speeds]) * 8)
        axes.invert_yaxis()
        for row, name in enumerate(names):
            text = f" {_short(alone[name]['samples_per_s'])}/s   {alone[name]['mb_per_s']:,.0f} MB/s"
            axes.text(speeds[row], row, text, va="center", color=_INK, fontsize=10, zorder=4)
        axes.axvline(whole, color=_INK, linewidth=1.6, zorder=3)
        axes.annotate(
            f"the whole: {_short(whole)} samples/s",
            (whole, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(-2, 6),
            textcoords="offset points",
            color=_INK,
            fontweight="bold",
        )
        axes.set_xlabel("samples per second, each stage alone (logarithmic)", color=_SOFT)
        axes.set_title(_title(facts), loc="left", pad=30, color=_INK, fontsize=13, fontweight="bold")
        axes.tick_params(which="both", length=0, colors=_INK)
        axes.grid(axis="x", color="#E6E6E6", zorder=0)
        for side in ("top", "right", "left", "bottom"):
            axes.spines[side].set_visible(False)
        try:
            figure.savefig(path, bbox_inches="tight", dpi=150)
        except OSError as error:
            raise UsageError(f"the picture {path} cannot be written: {error.strerror}", hint="make room") from error
        finally:
            pyplot.close(figure)


def _colour(name: str, slowest: str | None) -> str:
    return _SLOWEST if name == slowest else _LIMIT if name not in STAGES else _BAR


def _title(facts: Mapping[str, Any]) -> str:
    name = str(facts["uri"]).rstrip("/").rpartition("/")[2] or str(facts["uri"])
    held = facts["held_back_by"]
    return f"{name} ({facts['format']})" + (f": {held} holds it back" if held else "")


def _short(number: float) -> str:
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= limit:
            return f"{number / limit:.3g}{unit}"
    return f"{number:.3g}"
