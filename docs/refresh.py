"""Rewrites the generated parts of the manual from the program: help of commands, tables of settings.

    python docs/refresh.py          rewrite the pages
    python docs/refresh.py --check  fail if one is out of date

A part stands between ``<!-- KIND: NAME -->`` and ``<!-- end -->``; the text around it is written by hand.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from iostack.cli import cli
from trainer.model.options import DecoderOptions
from trainer.settings.show import to_toml
from trainer.settings.tree import PhaseSettings, Settings, SourceSettings

DOCS = Path(__file__).parent
_PART = re.compile(r"(<!-- (help|settings): (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
_TABLES: dict[str, type[BaseModel]] = {
    **{
        name: field.annotation
        for name, field in Settings.model_fields.items()
        if inspect.isclass(field.annotation) and issubclass(field.annotation, BaseModel)
    },
    "data.sources": SourceSettings,
    "data.phases": PhaseSettings,
    "decoder": DecoderOptions,
}


def refreshed(page: str) -> str:
    """Return the page with its generated parts as the program is now."""
    kinds: dict[str, Callable[[str], str]] = {"help": _help, "settings": _settings}
    return _PART.sub(lambda part: f"{part[1]}\n{kinds[part[2]](part[3])}\n{part[4]}", page)


def _help(name: str) -> str:
    context = click.Context(cli, info_name="iostack", terminal_width=100, max_content_width=100)
    command: click.Command = cli
    if name != "iostack":
        found = cli.get_command(context, name)
        if found is None:
            raise SystemExit(f"there is no command {name!r}")
        command = found
        context = click.Context(command, info_name=name, parent=context, terminal_width=100, max_content_width=100)
    with context:
        return f"```text\n{command.get_help(context)}\n```\n"


def _settings(name: str) -> str:
    """A table of key, default and meaning; the docstrings of the model are the text."""
    rows = ["| key | default | meaning |", "| --- | --- | --- |"]
    for key, field in _TABLES[name].model_fields.items():
        default = field.get_default(call_default_factory=True, validated_data={})
        shown = "required" if default is PydanticUndefined else f"`{_toml(default)}`"
        meaning = field.description or _docstrings(_TABLES[name])[key]
        rows.append(f"| `{key}` | {shown} | {_one_line(meaning)} |")
    return "\n".join(rows) + "\n"


def _toml(value: Any) -> str:
    if value is None:
        return "unset"
    if isinstance(value, dict):
        return "{}"
    return to_toml({"x": value}).partition("= ")[2].strip()


def _docstrings(kind: type[Any]) -> dict[str, str]:
    """Return the string after each attribute of a class: Python itself drops it."""
    [body] = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(body, ast.ClassDef)
    texts = {}
    for statement, after in zip(body.body, body.body[1:]):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            text = after.value if isinstance(after, ast.Expr) else None
            texts[statement.target.id] = str(text.value) if isinstance(text, ast.Constant) else ""
    return texts


def _one_line(text: str) -> str:
    text = " ".join(text.split()).replace("``", "`")
    return text.replace("|", "\\|")


def main() -> int:
    """Rewrite or check all pages; return the exit code."""
    stale = [
        page for page in sorted(DOCS.glob("*.md")) if refreshed(page.read_text("utf-8")) != page.read_text("utf-8")
    ]
    for page in stale:
        if "--check" not in sys.argv:
            page.write_text(refreshed(page.read_text("utf-8")), "utf-8")
        print(page.name)
    return 1 if stale and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
