"""A conversion that is stopped or killed goes on, and ends with the bytes of one that never was."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import conversions
import pytest
import runs

_LAST_ROW = 590


class Gate:
    """A source whose last rows wait at a gate, and the command that converts it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        conversions.write_texts(folder / "texts", shards=3, rows=200)
        gate = json.dumps({"name": "gate", "folder": str(folder), "row": _LAST_ROW})
        self.words = [str(folder / "texts"), "--to", "jsonl", "--shard-bytes", "400", "--transform", gate]

    def start(self, target: str) -> subprocess.Popen[str]:
        """Start the command and return it when a job stands before the gate, and other pieces are finished."""
        (self.folder / "open").unlink(missing_ok=True)
        (self.folder / "waiting").unlink(missing_ok=True)
        command = [*conversions.COMMAND, *self.words, str(self.folder / target), "--jobs", "2"]
        running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        runs.wait_until((self.folder / "waiting").exists, "a job at the gate")
        runs.wait_until(lambda: any((self.folder / target).glob("*.zst")), "a finished shard")
        return running

    @property
    def job(self) -> int:
        """The process that waits."""
        return int((self.folder / "waiting").read_text())

    def finish(self, target: str) -> dict[str, object]:
        """Run the command with an open gate."""
        (self.folder / "open").touch()
        return conversions.prepare(*self.words, self.folder / target, "--jobs", 2)


@pytest.fixture
def gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    monkeypatch.setenv("IOSTACK_PLUGINS", "gated")
    yield Gate(tmp_path)
    (tmp_path / "open").touch()


def _is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.mark.parametrize("victim", ["parent", "job", "parent by Ctrl-C"])
def test_a_killed_conversion_goes_on_to_the_same_bytes(gate: Gate, victim: str) -> None:
    running = gate.start("out")
    job = gate.job
    if victim == "job":
        os.kill(job, signal.SIGKILL)
    else:
        running.send_signal(signal.SIGKILL if victim == "parent" else signal.SIGINT)
    _, errors = running.communicate(timeout=60)
    runs.wait_until(lambda: _is_gone(job), "the end of the job")
    assert running.returncode == {"parent": -signal.SIGKILL, "job": 1, "parent by Ctrl-C": 130}[victim]
    if victim == "job":
        assert "error: a process that worked on piece" in errors
        assert "ended with signal SIGKILL" in errors
    before = conversions.files(gate.folder / "out")
    told = gate.finish("out")
    undisturbed = gate.finish("whole")
    assert 0 < len(before) < len(conversions.files(gate.folder / "whole"))
    assert conversions.files(gate.folder / "out") == conversions.files(gate.folder / "whole")
    assert before.items() <= conversions.files(gate.folder / "whole").items(), "only complete shards were left"
    assert told["pieces_made"] < undisturbed["pieces_made"]
    assert told["fingerprint"] == undisturbed["fingerprint"]
    assert not (gate.folder / "out" / ".iostack" / "staging").exists()


def test_a_second_conversion_into_one_target_is_refused(gate: Gate) -> None:
    running = gate.start("out")
    try:
        told = conversions.prepare(*gate.words, gate.folder / "out", code=1)
        assert told["error"].startswith(f"{gate.folder / 'out'} is being prepared by process {running.pid} on ")
    finally:
        (gate.folder / "open").touch()
        running.communicate(timeout=60)
    assert running.returncode == 0


def test_any_number_of_jobs_gives_the_same_bytes(tmp_path: Path) -> None:
    conversions.write_texts(tmp_path / "texts")
    for jobs in (1, 2):
        words = (
            tmp_path / "texts",
            tmp_path / str(jobs),
            "--to",
            "webdataset",
            "--shard-bytes",
            "50KB",
            "--jobs",
            jobs,
        )
        conversions.prepare(*words)
    assert conversions.files(tmp_path / "1") == conversions.files(tmp_path / "2")


def test_other_options_and_sources_are_refused_by_name(tmp_path: Path) -> None:
    conversions.write_texts(tmp_path / "texts")
    source, target = tmp_path / "texts", tmp_path / "out"
    conversions.prepare(source, target, "--to", "jsonl", "--jobs", 1)
    whole = conversions.files(target)
    told = conversions.prepare(source, target, "--to", "jsonl", "--columns", "text", "--jobs", 1, code=1)
    assert told["error"] == f'{target} was begun with columns [], and now it is ["text"]'
    with (source / "part-1.jsonl").open("a") as file:
        file.write('{"text": "more", "n": 1}\n')
    told = conversions.prepare(source, target, "--to", "jsonl", "--jobs", 1, code=1)
    assert told["error"].startswith(f"{target} was begun with source ")
    assert conversions.files(target) == whole


def test_overwrite_removes_what_was_made_and_nothing_else(tmp_path: Path) -> None:
    conversions.write_texts(tmp_path / "texts")
    source, target = tmp_path / "texts", tmp_path / "out"
    conversions.prepare(source, target, "--to", "mds", "--shard-bytes", "3KB", "--jobs", 1)
    assert len(conversions.files(target)) > 3
    (target / "notes").write_text("mine")
    told = conversions.prepare(source, target, "--to", "jsonl", "--overwrite", "--jobs", 1, code=1)
    assert told["error"] == f"{target} holds 1 files that iostack prepare did not make, such as notes"
    assert list(conversions.files(target)) == ["notes"]
    (target / "notes").unlink()
    conversions.prepare(source, target, "--to", "jsonl", "--overwrite", "--jobs", 1)
    assert list(conversions.files(target)) == ["part-000000.jsonl.zst"]


def test_a_shard_that_vanished_is_made_again(tmp_path: Path) -> None:
    conversions.write_texts(tmp_path / "texts")
    words = (tmp_path / "texts", tmp_path / "out", "--to", "jsonl", "--shard-bytes", "400", "--jobs", 1)
    conversions.prepare(*words)
    whole = conversions.files(tmp_path / "out")
    first, second, *_ = whole
    (tmp_path / "out" / first).unlink()
    (tmp_path / "out" / second).write_bytes(b"cut")
    assert conversions.prepare(*words)["pieces_made"] == 2
    assert conversions.files(tmp_path / "out") == whole


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    conversions.write_texts(tmp_path / "texts")
    words = (tmp_path / "texts", tmp_path / "out", "--to", "tokens", "--tokenizer", "bytes", "--shard-bytes", "5KB")
    told = conversions.prepare(*words, "--dry-run", "--jobs", 1)
    assert not (tmp_path / "out").exists()
    made = conversions.prepare(*words, "--jobs", 1)
    assert told["pieces"] == made["shards"]
    assert told["estimated_bytes"] == pytest.approx(made["bytes"], rel=0.3)


def test_what_a_killed_trial_left_is_swept_and_a_trial_of_now_is_kept(tmp_path: Path, cache_dir: Path) -> None:
    conversions.write_texts(tmp_path / "texts", shards=1, rows=3)
    left, living = (cache_dir / "prepare" / name for name in ("trial-left", "trial-living"))
    for folder in (left, living):
        folder.mkdir(parents=True)
        (folder / "part-000000.jsonl").write_text("{}")
    os.utime(left, (0, 0))
    conversions.prepare(tmp_path / "texts", tmp_path / "out", "--to", "jsonl", "--jobs", 1)
    assert sorted(folder.name for folder in (cache_dir / "prepare").glob("trial-*")) == ["trial-living"]
