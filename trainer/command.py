"""The command ``iostack train``, which ``python -m trainer`` (and so torchrun) runs too.

Everything heavy is imported when the command runs: listing the commands must stay quick.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from iostack.errors import IostackError, UsageError

if TYPE_CHECKING:
    from trainer.settings import Settings
    from trainer.supervise.world import World

_EXAMPLES = """\b
Examples:
  iostack train ./corpus --procs 2
  iostack train s3://bucket/corpus -c run.toml -s train.steps=60 -s model.dim=256
  iostack train -c run.toml --show-config
  torchrun --nnodes 8 --nproc-per-node 8 -m trainer s3://bucket/corpus -c run.toml
"""


@click.command(epilog=_EXAMPLES)
@click.argument("uri", required=False, default="")
@click.option("-c", "--config", type=click.Path(path_type=Path), metavar="FILE", help="Settings, as TOML.")
@click.option(
    "-s",
    "--set",
    "assignments",
    multiple=True,
    metavar="KEY=VALUE",
    help="One setting, such as train.steps=60; the value is TOML or a bare string. Wins over the file.",
)
@click.option(
    "--run-dir",
    type=click.Path(path_type=Path),
    default=Path("run"),
    show_default=True,
    metavar="FOLDER",
    help="Settings, metrics and checkpoints of the run. The same command again resumes it.",
)
@click.option(
    "--procs", type=click.IntRange(min=1), default=1, show_default=True, metavar="N", help="Local processes to start."
)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), help="Short for -s train.device=...")
@click.option("--cache-dir", metavar="FOLDER", help="Short for -s data.cache_dir=...")
@click.option("--show-config", is_flag=True, help="Print all settings and where each came from, and end.")
@click.option("--json", "as_json", is_flag=True, help="With --show-config: print JSON.")
def train(
    uri: str,
    config: Path | None,
    assignments: tuple[str, ...],
    run_dir: Path,
    procs: int,
    device: str | None,
    cache_dir: str | None,
    show_config: bool,
    as_json: bool,
) -> int:
    """Train a model on the corpus at URI, or go on where the last checkpoint is.

    Ctrl-C and SIGTERM end the run after the step, saved. Credentials belong into the environment.
    """
    from trainer.settings import resolve_settings
    from trainer.supervise.world import World

    world = World.from_environment()
    flags = {"train.device": device, "data.cache_dir": cache_dir}
    try:
        settings, origins = resolve_settings(
            file=config,
            assignments=assignments,
            uri=uri,
            flags={key: value for key, value in flags.items() if value is not None},
        )
        if show_config:
            _show(settings, origins, as_json=as_json)
            return 0
        _refuse_early(settings, world, procs)
    except IostackError as error:
        if world.local_rank:  # the first rank of the machine says it for all
            from trainer.supervise.report import let_the_first_tell

            let_the_first_tell()
            return error.exit_code
        raise
    if procs == 1:
        return _run_here(settings, world, run_dir)
    return _launch(run_dir, procs)


def _show(settings: Settings, origins: dict[str, str], *, as_json: bool) -> None:
    from trainer.settings.show import shown_settings, to_toml

    shown = shown_settings(settings)
    click.echo(
        json.dumps({"settings": shown, "origins": origins}) if as_json else to_toml(shown, origins=origins).rstrip()
    )


def _refuse_early(settings: Settings, world: World, procs: int) -> None:
    if not settings.data.uri and not settings.data.sources:
        raise UsageError("no corpus to train on", hint="give a URI, or set data.uri or [[data.sources]]")
    if procs > 1 and world.store is not None:
        raise UsageError(
            "--procs starts processes, and this is one of several already", hint="leave --procs out under torchrun"
        )


def _run_here(settings: Settings, world: World, run_dir: Path) -> int:
    from trainer.process import run_process

    _log_as(world)
    return run_process(settings, world=world, run_dir=run_dir, debug=_debug())


def _log_as(world: World) -> None:
    """Log what goes well on rank 0 alone, and warnings on every rank: each has bad samples of its own."""
    for name in ("iostack", "trainer"):
        logger = logging.getLogger(name)
        logger.setLevel(logging.WARNING if world.rank else logging.INFO)
        for handler in logger.handlers if world.size > 1 else ():
            handler.setFormatter(_RankFormatter(world.rank))
    logging.getLogger("trainer.checkpoint").setLevel(logging.WARNING)


class _RankFormatter(logging.Formatter):
    """Begins warnings and errors with the rank that has them."""

    def __init__(self, rank: int) -> None:
        super().__init__("%(message)s")
        self._rank = rank

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return f"rank {self._rank}: {text}" if record.levelno >= logging.WARNING else text


def _launch(run_dir: Path, procs: int) -> int:
    from trainer.run_folder import RunFolder
    from trainer.supervise.launch import launch

    context = click.get_current_context()
    with RunFolder(run_dir) as folder:
        arguments = _arguments(context.params) + (["--debug"] if _debug() else [])
        return launch(arguments, procs=procs, lock_fd=folder.lock_fd)


def _arguments(params: dict[str, Any]) -> list[str]:
    """Return the command line of a rank: that of the launcher, but for the number of processes."""
    words = [part for value in params["assignments"] for part in ("-s", value)]
    for option, name in (
        ("-c", "config"),
        ("--run-dir", "run_dir"),
        ("--device", "device"),
        ("--cache-dir", "cache_dir"),
    ):
        if params[name] is not None:
            words += [option, str(params[name])]
    return [*words, "--", params["uri"]] if params["uri"] else words


def _debug() -> bool:
    # iostack.cli takes the flag out of the command line before it parses the rest.
    return "--debug" in sys.argv
