"""The command line: finds the command, and turns every error into one line, a hint and an exit code.

Commands are imported when they are named; importing this imports neither numpy nor pyarrow, rich or torch. Plugins add
commands through the hook ``iostack_commands``.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
import traceback
from collections.abc import Sequence

import click

from iostack import __version__
from iostack.cli.interrupts import Interrupts, end_at_once
from iostack.errors import DamagedShardsError, IostackError, UsageError, redact
from iostack.registry import registry

_OURS = ("bench", "index", "inspect", "plan", "plugins", "prepare")
_SHOWN_SHARDS = 50
_EXAMPLES = """\b
Examples:
  iostack quickstart
  iostack inspect s3://bucket/corpus
  iostack train ./corpus -c run.toml
"""


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        try:
            offered = set(_offered())
        except IostackError as error:
            _tell(error)
            offered = set()
        return sorted({*_OURS, *offered})

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name in _OURS:
            command: click.Command = getattr(importlib.import_module(f"iostack.cli.{name}"), name)
            return command
        return _offered().get(name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            from iostack.suggest import closest  # its difflib costs each start 2 ms

            hint = f"{closest(args[0], self.list_commands(ctx))} see: {ctx.command_path} --help"
            raise UsageError(error.message + registry().blame_broken(), hint=hint) from error


@click.command(cls=_Commands, epilog=_EXAMPLES)
@click.version_option(__version__, prog_name="iostack")
@click.option("--debug", is_flag=True, help="Show the traceback of an error; may stand anywhere.")
def cli(debug: bool) -> None:
    """From the URI of a sharded corpus to batches, and to a training run that survives faults."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 1 the world was wrong, 2 the request was, 130 interrupted."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    is_process = arguments is None
    interrupts = Interrupts()
    if is_process:
        interrupts.install()
    _log_to_stderr()
    try:
        code = cli.main([word for word in words if word != "--debug"], prog_name="iostack", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except (KeyboardInterrupt, click.Abort):
        return end_at_once(130) if is_process else 130
    except BrokenPipeError:  # the reader of our output, such as head, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:  # noqa: BLE001 (every error ends here, as one line)
        if interrupts.came:
            end_at_once(130)
        if debug:
            click.echo(redact(traceback.format_exc()), err=True)
        return _tell(error)


def _tell(error: Exception) -> int:
    """Print an error as one line and a hint; return its exit code."""
    if isinstance(error, IostackError):
        message, hint, code = error.message, error.hint, error.exit_code
    elif isinstance(error, click.ClickException):
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "iostack"
        message, hint, code = error.format_message(), f"see: {command} --help", error.exit_code
    else:
        message, hint, code = f"{type(error).__name__}: {error}", "this is a bug: --debug shows where", 1
    for each in error.shards[:_SHOWN_SHARDS] if isinstance(error, DamagedShardsError) else ():
        click.echo(f"damaged: {_one_line(f'{each.message} ({each.hint})')}", err=True)
    click.echo(f"{_label('error', 'red')} {_one_line(message)}", err=True)
    if hint:
        click.echo(f"{_label('hint', 'cyan')} {_one_line(hint)}", err=True)
    return code


def _label(word: str, color: str) -> str:
    return click.style(f"{word}:", fg=color, bold=True) if not os.environ.get("NO_COLOR") else f"{word}:"


def _one_line(text: str) -> str:
    # Names from data may hold newlines and terminal control sequences.
    text = " ".join(redact(text).split("\n"))
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def _offered() -> dict[str, click.Command]:
    offered: dict[str, click.Command] = {}
    for command in registry().listed("iostack_commands"):
        offered.setdefault(command.name, command)
    return offered


def _log_to_stderr() -> None:
    for name in ("iostack", "trainer"):
        logger = logging.getLogger(name)
        logger.setLevel(logging.INFO)
        if not logger.handlers:
            handler = logging.StreamHandler()
            handler.setFormatter(logging.Formatter("%(message)s"))
            logger.addHandler(handler)
