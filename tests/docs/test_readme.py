"""README.md: its set-up commands and its quickstart do what it says."""

from __future__ import annotations

import re
import shlex
import sys
import time
import tomllib
from itertools import pairwise
from pathlib import Path

import click
import pages
import pytest
import runs

from iostack.cli import cli

PAGE = pages.read_page("../README.md")
SHELL = [block.text for block in pages.blocks(PAGE, "sh")]
QUICKSTART_S = 120
STEPS = 40


def _setup(word: str) -> str:
    """Return the set-up command that ends in ``word``: one line, as the README shows it."""
    [found] = [
        line for text in SHELL for line in text.splitlines() if line.startswith("python3 -m venv") and word in line
    ]
    return found


def test_both_setup_commands_are_single_lines_in_blocks_of_their_own() -> None:
    alone = [text.strip() for text in SHELL if text.startswith("python3 -m venv")]
    assert alone == [_setup("iostack quickstart"), _setup("tox")]


def test_setup_commands_name_what_the_checkout_has() -> None:
    project = tomllib.loads((pages.ROOT / "pyproject.toml").read_text())["project"]
    for command in (_setup("iostack quickstart"), _setup("tox")):
        words = shlex.split(command)
        for extra in re.findall(r"\.\[([\w,]+)\]", command):
            assert set(extra.split(",")) <= set(project["optional-dependencies"])
        for flag, name in pairwise(words):
            if flag == "-c":
                assert (pages.ROOT / name).is_file()


def test_every_iostack_command_of_the_readme_has_these_options() -> None:
    context = click.Context(cli)
    lines = re.findall(r"^iostack (\w+)([^#\n]*)", "\n".join(SHELL), re.MULTILINE)
    assert {name for name, _ in lines} >= {"inspect", "index", "train", "plugins"}
    for name, rest in lines:
        command = cli.get_command(context, name)
        assert command, name
        command.make_context(name, shlex.split(rest), parent=context, resilient_parsing=False)


def test_the_readme_shows_a_command_within_its_first_40_lines() -> None:
    assert "```sh" in "\n".join(PAGE.splitlines()[:40])


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """What the README's quickstart wrote and said, with fewer steps."""
    folder = tmp_path_factory.mktemp("quickstart") / "quickstart"
    words = shlex.split(_setup("iostack quickstart").rpartition("bin/iostack ")[2])
    started = time.monotonic()
    told = pages.run(
        [sys.executable, "-m", "iostack", *words, "--folder", str(folder), "--steps", str(STEPS)],
        cwd=folder.parent,
        timeout_s=QUICKSTART_S,
        env=pages.environment(IOSTACK_CACHE=str(folder.parent / "cache")),
    )
    assert time.monotonic() - started < QUICKSTART_S
    return folder, told


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.timeout(QUICKSTART_S + 60)
def test_the_quickstart_is_killed_resumes_and_proves_that_nothing_was_lost(story: tuple[Path, str]) -> None:
    folder, told = story
    assert re.search(r"Killed with SIGKILL after step \d+; the same command again resumes", told)
    assert re.search(rf"No: a process that never stopped computes the same samples for each of the {STEPS} steps", told)
    commands = [line for line in told.splitlines() if line.startswith("$ iostack train")]
    assert len(commands) == 2
    assert commands[0] == commands[1]
    steps = [line["step"] for line in runs.read_lines(folder / "run" / "metrics.jsonl")]
    assert steps == list(range(1, STEPS + 1))


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.timeout(QUICKSTART_S + 60)
def test_the_quickstart_learns_and_shows_it(story: tuple[Path, str]) -> None:
    folder, told = story
    losses = {name: float(value) for name, value in re.findall(r"^(loss .*?)  +(\d+\.\d+)", told, re.MULTILINE)}
    by_frequency = losses.pop("loss of a model of byte frequencies")
    assert len(losses) == 2
    assert all(loss < by_frequency for loss in losses.values())
    picture = folder / "loss.png"
    assert f"picture of the loss                  {picture}" in told
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "tokens/s" in told
    assert "Try next:" in told
