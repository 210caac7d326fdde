"""The run folder: one run at a time, and nothing left of a run that could not start."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib

import pytest

from iostack.errors import RunError, RunLockedError
from trainer.run_folder import RunFolder, refuse_changes


def test_the_second_to_open_a_folder_is_refused_and_told_who_has_it(tmp_path):
    with RunFolder(tmp_path / "run"), pytest.raises(RunLockedError, match=f"process {os.getpid()} on "):
        RunFolder(tmp_path / "run")

    RunFolder(tmp_path / "run").close()


def test_a_folder_in_which_nothing_was_written_is_removed_again(tmp_path):
    with RunFolder(tmp_path / "run"):
        assert (tmp_path / "run").is_dir()
    assert not (tmp_path / "run").exists()


def test_a_folder_that_was_there_stays(tmp_path):
    with RunFolder(tmp_path):
        pass
    assert tmp_path.is_dir()


def test_what_was_written_stays(tmp_path):
    with RunFolder(tmp_path / "run") as folder:
        folder.write_settings({"train": {"steps": 3}})
    assert tomllib.loads((tmp_path / "run" / "settings.toml").read_text()) == {"train": {"steps": 3}}


def test_the_lock_of_a_killed_process_is_free_and_that_of_its_children_is_waited_for(tmp_path):
    """A child that inherited the lock holds it for a moment after its parent is gone."""
    holder = (
        "import os, subprocess, sys; from pathlib import Path; from trainer.run_folder import RunFolder\n"
        f"folder = RunFolder(Path({str(tmp_path / 'run')!r}))\n"
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(1)'], pass_fds=[folder.lock_fd])\n"
        "os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", holder], check=False, timeout=60)

    RunFolder(tmp_path / "run").close()


def test_a_folder_that_cannot_be_made_is_an_error_that_says_why(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be used: Not a directory"):
        RunFolder(tmp_path / "file" / "run")


def test_changed_settings_are_refused_by_name_where_they_decide_order_or_shape():
    saved = {"model": {"dim": 32}, "data": {"seed": 0, "batch_size": 8}, "train": {"steps": 5}}

    refuse_changes(saved, {**saved, "train": {"steps": 9}}, where="there")
    refuse_changes(saved, {**saved, "data": {"seed": 0, "batch_size": 16}}, where="there")
    with pytest.raises(RunError, match=r"data\.seed is 0 in there, and 1 now"):
        refuse_changes(saved, {**saved, "data": {"seed": 1, "batch_size": 8}}, where="there")
    with pytest.raises(RunError, match=r"model\.layers is not set in there, and 2 now"):
        refuse_changes(saved, {**saved, "model": {"dim": 32, "layers": 2}}, where="there")
