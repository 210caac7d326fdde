"""Whatever the moment at which a save is killed or the disk fills, the step before stays loadable."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from iostack.errors import CheckpointError
from trainer.checkpoint import Checkpointer

from .steps import load, loaded_step, save_steps, tensors_of

KILLED = Path(__file__).with_name("killed.py")


def run_killed(mode: str, folder: Path) -> list[dict[str, int]]:
    """Kill saves as ``killed.py`` says; returns for each the step that was loadable after it and the one after that."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "error", str(KILLED), mode, str(folder)],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=100,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_save_killed_before_any_of_its_file_operations_loses_nothing(tmp_path: Path) -> None:
    outcomes = run_killed("each", tmp_path)
    steps = [outcome["loaded"] for outcome in outcomes]
    assert set(steps) == {1, 2}
    assert steps == sorted(steps), "once it is committed it stays"
    assert steps.count(1) > 10
    assert {outcome["resumed"] for outcome in outcomes} == {3}
    assert {outcome["attempts"] for outcome in outcomes} == {1}, "what was left unfinished is collected"


def test_a_save_killed_at_any_moment_loses_nothing(tmp_path: Path) -> None:
    outcomes = run_killed("random", tmp_path)
    assert len(outcomes) == 25
    for outcome in outcomes:
        assert outcome["loaded"] in (outcome["reported"], outcome["reported"] + 1)


@contextmanager
def files_of_at_most(num_bytes: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("num_bytes", [0, 10, 300, 1 << 20])
def test_a_full_disk_is_said_and_leaves_the_step_before(tmp_path: Path, num_bytes: int) -> None:
    save_steps(tmp_path, 1)
    checkpoints = Checkpointer(str(tmp_path))
    checkpoints.begin({"model": "test"})
    with (
        pytest.raises(CheckpointError, match="step 2 was not saved: File too large") as raised,
        files_of_at_most(num_bytes),
    ):
        checkpoints.save(2, tensors_of(2), {"position": 20}, settings={})
    assert raised.value.hint == "free some space, raise the quota, or keep fewer steps"
    assert [path.name for path in tmp_path.glob("steps/*")] == ["1.1-0"]
    assert loaded_step(tmp_path) == 1
    checkpoints.save(2, tensors_of(2), {"position": 20}, settings={})
    assert loaded_step(tmp_path) == 2


def test_no_right_to_write_is_said(tmp_path: Path) -> None:
    save_steps(tmp_path, 1)
    checkpoints = Checkpointer(str(tmp_path))
    checkpoints.begin({"model": "test"})
    (tmp_path / "manifests").rename(tmp_path / "hidden")
    (tmp_path / "manifests").write_text("")
    with pytest.raises(CheckpointError, match=r"step 2 was not saved: Not a directory: .*manifests"):
        checkpoints.save(2, tensors_of(2), {}, settings={})
    (tmp_path / "manifests").unlink()
    (tmp_path / "hidden").rename(tmp_path / "manifests")
    restored = load(tmp_path)
    assert restored is not None
    assert restored.step == 1
