"""Conversions for tests: run in this process or as a command, and what they left."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import corpora
import pages

import iostack
from iostack import cli

COMMAND = [sys.executable, "-m", "iostack", "prepare"]


def prepare(*words: object, code: int = 0) -> dict[str, Any]:
    """Run ``iostack prepare``; return its facts, or {"error": first line, "hint": second}.

    With more than one job it runs in a process of its own: spawned processes import the main module anew.
    """
    arguments = [*map(str, words), "--json"]
    if "1" in arguments:
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            ended = cli.main(["prepare", *arguments])
        stdout, stderr = out.getvalue(), err.getvalue()
    else:
        done = subprocess.run(
            [*COMMAND, *arguments], capture_output=True, text=True, check=False, timeout=100, env=pages.environment()
        )
        ended, stdout, stderr = done.returncode, done.stdout, done.stderr
    assert ended == code, stderr
    if code:
        lines = [line for line in stderr.splitlines() if line.startswith(("error: ", "hint: "))]
        assert "Traceback" not in stderr
        return dict(line.split(": ", 1) for line in lines)
    return dict(json.loads(stdout))


def write_texts(folder: Path, *, shards: int = 3, rows: int = 200) -> list[dict[str, Any]]:
    """Write JSONL shards of text with a number; return the samples in their order."""
    samples = corpora.texts(shards * rows)
    for shard in range(shards):
        corpora.write_jsonl(folder / f"part-{shard}.jsonl", samples[shard * rows : (shard + 1) * rows])
    return samples


def files(folder: Path) -> dict[str, bytes]:
    """Return the bytes of all files that are no hidden ones."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and ".iostack" not in path.parts
    }


def read_back(folder: Path) -> list[dict[str, Any]]:
    """Return all samples of a corpus that was indexed."""
    with iostack.open_corpus(folder) as corpus:
        assert corpus.indexed
        return list(corpus)
