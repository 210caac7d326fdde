"""Options that all commands about a corpus share."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])


class FiniteRange(click.FloatRange):
    """Numbers of a range, but neither nan, which lies in every range, nor infinity."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number", param, ctx)
        return number


def corpus_options(command: Command) -> Command:
    """Add the argument URI and the options that ``open_corpus`` takes; see ``corpus_arguments``."""
    for option in reversed(
        (
            click.argument("uri"),
            click.option("--format", metavar="NAME", help="Format of the shards, where their names do not tell."),
            click.option("--cache-dir", metavar="FOLDER", help="Where remote and decompressed shards are kept."),
            click.option(
                "-o",
                "--option",
                "storage",
                metavar="KEY=VALUE",
                multiple=True,
                help="Storage option, as fsspec takes it; dots nest: client_kwargs.endpoint_url=http://...",
            ),
        )
    ):
        command = option(command)
    return command


def columns_option(command: Command) -> Command:
    """Add ``--columns``; see ``chosen_columns``."""
    return click.option(
        "--columns", metavar="NAME,...", help="Columns of Parquet and Arrow shards to read; by default all."
    )(command)


def chosen_columns(text: str | None) -> list[str] | None:
    """Return the names in a list with commas; None where the option was not given."""
    return None if text is None else [name for name in text.split(",") if name]


def storage_options(pairs: Sequence[str]) -> dict[str, Any]:
    """Parse ``KEY=VALUE`` pairs: values are JSON where they parse as such, else text; dots in keys nest.

    Raises:
        click.UsageError: a pair without an equals sign.
    """
    options: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise click.UsageError(f"-o takes KEY=VALUE, not {key!r}")
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        *parents, last = key.split(".")
        inner = options
        for parent in parents:
            inner = inner.setdefault(parent, {})
            if not isinstance(inner, dict):
                raise click.UsageError(f"-o gives {key!r} both a value and parts")
        inner[last] = value
    return options


def operator_specs(texts: Sequence[str], option: str) -> list[Any]:
    """Return transforms or filters as the loader takes them: a name, or a table where the text is JSON.

    Raises:
        click.UsageError: neither of both.
    """
    return [_operator_spec(text, option) for text in texts]


def _operator_spec(text: str, option: str) -> Any:
    if not text.lstrip().startswith("{"):
        return text
    try:
        return json.loads(text)
    except ValueError as error:
        raise click.UsageError(f"{option} {text!r} is neither a name nor JSON: {error}") from error
