"""Ctrl-C ends a command at any time, on a busy machine too, and nothing of it stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import corpora
import pytest
from http_store import serve

DEADLINE_S = 60
BURN = "while True: pass"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture
def busy() -> Iterator[None]:
    burning = [subprocess.Popen([sys.executable, "-c", BURN]) for _ in range(os.cpu_count() or 1)]
    yield
    for process in burning:
        process.kill()
        process.wait()


def _interrupted(folder: Path, arguments: list[str], is_time: Callable[[], bool]) -> None:
    """Run ``iostack bench``, interrupt it when it is time, and expect that it ends and leaves nothing."""
    (folder / "temporary").mkdir()
    before = set(Path("/dev/shm").iterdir())
    mark = f"IOSTACK_TEST_MARK={folder}"
    environment = os.environ | {"TMPDIR": str(folder / "temporary"), "IOSTACK_TEST_MARK": str(folder)}
    command = [sys.executable, "-m", "iostack", "bench", *arguments, "--cache-dir", str(folder / "cache")]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    ) as process:
        try:
            deadline = time.monotonic() + DEADLINE_S
            while not is_time():
                assert process.poll() is None, process.communicate()
                assert time.monotonic() < deadline
            process.send_signal(signal.SIGINT)
            out, told = process.communicate(timeout=DEADLINE_S)
        finally:
            process.kill()
    assert process.returncode == 130, told
    assert b"error" not in told
    assert out == b""
    assert list((folder / "temporary").iterdir()) == []
    assert [path for path in (folder / "cache").rglob("*") if "bench-" in path.name or ".part" in path.name] == []
    assert not [path for path in set(Path("/dev/shm").iterdir()) - before if "iostack" in path.name]
    while _marked(mark):  # workers are killed by the kernel when their parent goes
        assert time.monotonic() < deadline + DEADLINE_S


def _marked(mark: str) -> list[int]:
    """The processes that have the mark in their environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if f"{mark}\0".encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
    return found


@pytest.mark.parametrize("workers", ["0", "2"])
@pytest.mark.parametrize("stage", ["whole", "alone"])
def test_an_interrupted_bench_leaves_nothing(tmp_path: Path, busy: None, stage: str, workers: str) -> None:
    corpora.write_jsonl(tmp_path / "corpus" / "a.jsonl", corpora.texts(2000))
    trace, cache = tmp_path / "trace.json", tmp_path / "cache"
    arguments = [str(tmp_path / "corpus"), "--seq-len", "16", "--workers", workers, "--trace", str(trace)]
    arguments += ["--seconds", "0.1" if stage == "alone" else "3600", "--alone-seconds", "3600"]
    begun = {
        "whole": lambda: trace.exists() and trace.stat().st_size > 100_000,
        "alone": lambda: any(cache.rglob("bench-*")),
    }
    _interrupted(tmp_path, arguments, begun[stage])


def test_a_bench_that_is_interrupted_while_the_store_hangs_leaves_no_part_of_an_object(tmp_path: Path) -> None:
    lines = corpora.write_jsonl(tmp_path / "a.jsonl", corpora.texts(20_000)).read_bytes()
    objects = {f"/c/{name}.jsonl": lines for name in "abc"}
    with serve(objects) as store:
        store.stall.update(objects)
        _interrupted(tmp_path, [f"{store.uri}/c/"], store.half_sent.is_set)
