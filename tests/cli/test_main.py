"""The entry point: help that is cheap, errors that are one line, exit codes, interrupts, and plugins' commands."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from iostack import cli
from iostack.errors import IostackError, UsageError

HEAVY = (
    "numpy",
    "torch",
    "pyarrow",
    "pandas",
    "fsspec",
    "webdataset",
    "pydantic",
    "rich",
    "safetensors",
    "zstandard",
    "datasets",
)


def _python(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", program]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, check=False)


def test_help_imports_nothing_heavy() -> None:
    done = _python(
        "import sys; from iostack.cli import main; code = main(['--help'])\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr); sys.exit(code)"
    )
    assert (done.returncode, done.stderr) == (0, "[]\n")
    for command in ("index", "inspect", "plugins"):
        assert f"\n  {command} " in done.stdout


def test_importing_the_command_line_imports_no_numpy() -> None:
    done = _python("import sys, iostack.cli; print('numpy' in sys.modules)")
    assert done.stdout == "False\n"


@pytest.mark.parametrize("command", ["index", "inspect", "plugins"])
def test_every_help_ends_with_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([command, "--help"]) == 0
    help_text = capsys.readouterr().out
    assert f"iostack {command}" in help_text.split("Examples:")[1]


class _Boom:
    """A command that raises what a test wants, as a plugin offers it."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def command(self) -> click.Command:
        def callback() -> None:
            raise self.error

        return click.Command("boom", callback=callback)


def _boom(monkeypatch: pytest.MonkeyPatch, error: BaseException, *more: str) -> int:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr(cli, "_offered", lambda: {"boom": _Boom(error).command()})
    return cli.main(["boom", *more])


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (IostackError("the world was wrong", hint="mend it"), 1, "error: the world was wrong\nhint: mend it\n"),
        (UsageError("the request was wrong"), 2, "error: the request was wrong\n"),
        (
            ValueError("a bug\nof ours"),
            1,
            "error: ValueError: a bug of ours\nhint: this is a bug: --debug shows where\n",
        ),
        (IostackError("evil \x1b[2J name"), 1, "error: evil \\x1b[2J name\n"),
        (IostackError("s3://key:secret@b/c?token=abc"), 1, "error: s3://***@b/c?token=***\n"),
        (KeyboardInterrupt(), 130, "\n"),
    ],
)
def test_an_error_is_one_line_and_an_exit_code(
    error: BaseException,
    code: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert _boom(monkeypatch, error) == code
    assert capsys.readouterr().err == said


def test_debug_shows_the_traceback_without_credentials(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _boom(monkeypatch, ValueError("http://user:hunter2@host/"), "--debug") == 1
    said = capsys.readouterr().err
    assert "Traceback (most recent call last)" in said
    assert "hunter2" not in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["inspect"], "Missing argument 'URI'"),
        (["inspect", "x", "--frmat", "y"], "No such option"),
        (["inspect", "x", "-o", "nothing"], "-o takes KEY=VALUE, not 'nothing'"),
        (["inspekt"], "No such command 'inspekt'"),
        (["index", "x", "--threads", "0"], "0 is not in the range"),
    ],
)
def test_a_wrong_request_exits_with_2(
    arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    assert cli.main(arguments) == 2
    error, hint = capsys.readouterr().err.splitlines()
    assert said in error
    assert hint.startswith("hint: ")
    assert "see: iostack" in hint


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["inspekt"], "did you mean 'inspect'? see: iostack --help"),
        (["inspect", ".", "--format", "jsnol"], "did you mean 'jsonl'?"),
        (["inspect", ".", "--format", "lance"], "there are: "),
    ],
)
def test_a_mistyped_name_is_answered_with_the_closest(
    arguments: list[str], hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jsonl").write_text("{}\n")
    assert cli.main(arguments) == 2
    assert f"hint: {hint}" in capsys.readouterr().err


PLUGIN = """
import click
from iostack import hookimpl

@hookimpl
def iostack_commands():
    @click.command()
    def hello():
        "Say hello."
        click.echo("hello from a plugin")
    return [hello]
"""


def test_a_plugin_offers_a_command(tmp_path: Path) -> None:
    (tmp_path / "hello_plugin.py").write_text(PLUGIN)
    environment = {"IOSTACK_PLUGINS": "hello_plugin", "PYTHONPATH": str(tmp_path)}
    main = "import sys; from iostack.cli import main; sys.exit(main({}))"
    assert _python(main.format(["hello"]), **environment).stdout == "hello from a plugin\n"
    assert "Say hello." in _python(main.format(["--help"]), **environment).stdout


def test_help_survives_a_plugin_that_fails(tmp_path: Path) -> None:
    (tmp_path / "bad_plugin.py").write_text(PLUGIN.replace("    @click.command()", "    1 / 0\n    @click.command()"))
    environment = {"IOSTACK_PLUGINS": "bad_plugin", "PYTHONPATH": str(tmp_path), "NO_COLOR": "1"}
    done = _python("import sys; from iostack.cli import main; sys.exit(main(['--help']))", **environment)
    assert done.returncode == 0
    assert "inspect" in done.stdout
    assert "plugin 'bad_plugin' failed in iostack_commands: ZeroDivisionError" in done.stderr
    assert "IOSTACK_BLOCK=bad_plugin" in done.stderr


def test_a_reader_that_goes_away_is_no_traceback() -> None:
    done = subprocess.run(
        f"{sys.executable} -c 'from iostack.cli import main; main([\"plugins\"])' | true",
        shell=True,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr
    assert "error" not in done.stderr
