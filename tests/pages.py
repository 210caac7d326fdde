"""The pages of the manual as tests see them: their headings, links and fenced blocks, and the commands that they show."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"

_FENCE = re.compile(r"^```(\w+)?(?: file=(\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page; ``file`` is the name that the fence gives it, if any."""

    language: str
    file: str
    text: str

    @property
    def lines_of_code(self) -> int:
        """Lines that are not blank."""
        return sum(1 for line in self.text.splitlines() if line.strip())


def read_page(name: str) -> str:
    """Return a page of docs/, or of the root if the name says so (``../README.md``)."""
    return (DOCS / name).read_text("utf-8")


def blocks(page: str, language: str = "") -> list[Block]:
    """Return the fenced blocks of a page, of one language if given."""
    found = [Block(*(part or "" for part in match.groups())) for match in _FENCE.finditer(page)]
    return [block for block in found if language in ("", block.language)]


def headings(page: str) -> list[str]:
    """Return the headings of a page, without their marks; those in fenced blocks are none."""
    return re.findall(r"^#+ (.*)$", _FENCE.sub("", page), re.MULTILINE)


def anchors(page: str) -> set[str]:
    """Return what links to a heading of this page may name."""
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings(page)}


def links(page: str) -> list[str]:
    """Return the targets of all links and pictures outside fenced blocks."""
    return re.findall(r"\]\(([^)\s]+)\)", _FENCE.sub("", page))


def section(page: str, heading: str) -> str:
    """Return the text below a heading, up to the next one of its level or above."""
    match = re.search(rf"^(#+) {re.escape(heading)}$", page, re.MULTILINE)
    assert match, f"there is no heading {heading!r}"
    rest = page[match.end() :]
    end = re.search(rf"^#{{1,{len(match[1])}}} ", _FENCE.sub(lambda fence: "." * len(fence[0]), rest), re.MULTILINE)
    return rest[: end.start()] if end else rest


def environment(**variables: str) -> dict[str, str]:
    """Return this process's environment with ``iostack`` on the path, no colors and a fixed width."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return {**os.environ, "PATH": path, "NO_COLOR": "1", "COLUMNS": "100", **variables}


def run(
    command: list[str] | str, *, cwd: Path, timeout_s: float = 100, code: int = 0, env: Mapping[str, str] | None = None
) -> str:
    """Run a command (a string: in a shell) and return its stdout; an AssertionError shows stderr if it ends otherwise."""
    done = subprocess.run(
        command,
        check=False,
        shell=isinstance(command, str),
        cwd=cwd,
        env=dict(env or environment()),
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )
    assert done.returncode == code, f"{command} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def matches(shown: str, real: str) -> bool:
    """Whether output is what a page shows of it; ``...`` in the page stands for anything, blanks at line ends for none."""
    shown, real = ("\n".join(line.rstrip() for line in text.strip().splitlines()) for text in (shown, real))
    pattern = ".*?".join(re.escape(part) for part in shown.split("..."))
    return re.fullmatch(pattern, real, re.DOTALL) is not None


def check_console(block: Block, *, cwd: Path) -> None:
    """Run the ``$`` lines of a console block in order and compare what they print, stdout and stderr, with the page."""
    for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
        command, _, shown = part.partition("\n")
        while command.endswith("\\"):
            more, _, shown = shown.partition("\n")
            command = f"{command[:-1]} {more.strip()}"
        done = subprocess.run(
            command,
            check=False,
            shell=True,
            cwd=cwd,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=100,
        )
        assert matches(shown, done.stdout), f"$ {command}\n{done.stdout}\ninstead of\n{shown}"
