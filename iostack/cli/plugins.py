"""``iostack plugins``: what is installed, and what is broken."""

from __future__ import annotations

import dataclasses
import json

import click

from iostack.registry import Plugin, registry


@click.command(
    epilog="""\b
Examples:
  iostack plugins
  iostack plugins --json
  IOSTACK_PLUGINS=my_module iostack plugins
"""
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON array.")
def plugins(as_json: bool) -> None:
    """List the installed plugins, their hooks, and why any of them is blocked or broken."""
    found = registry().plugins
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(plugin) for plugin in found], indent=2))
        return
    rows = [("NAME", "STATE", "VERSION", "DISTRIBUTION", "HOOKS"), *map(_row, found)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row, error in zip(rows, ("", *(plugin.error for plugin in found)), strict=True):
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        if error:
            click.echo(f"  {error}")


def _row(plugin: Plugin) -> tuple[str, str, str, str, str]:
    hooks = ", ".join(hook.removeprefix("iostack_") for hook in plugin.hooks)
    return plugin.name, plugin.state, plugin.version, plugin.distribution, hooks
