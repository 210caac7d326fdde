"""The engine "ray" on a Ray of this machine: the same bytes as processes, and nothing stays behind."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import conversions
import pytest
import runs

pytest.importorskip("ray", reason="Ray is not installed")


def _ray_processes() -> set[int]:
    found = set()
    for entry in Path("/proc").iterdir():
        try:
            command = (entry / "cmdline").read_bytes() if entry.name.isdigit() else b""
        except OSError:
            continue
        if b"raylet" in command or b"gcs_server" in command or command.startswith(b"ray::"):
            found.add(int(entry.name))
    return found


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder for Ray's sockets, whose paths must be short."""
    folder = Path(tempfile.mkdtemp(prefix="iostack-ray-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
def test_ray_makes_the_same_bytes_and_leaves_no_process(
    tmp_path: Path, short_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(short_folder))
    conversions.write_texts(tmp_path / "texts")
    before = _ray_processes()
    words = (tmp_path / "texts", "--to", "tokens", "--tokenizer", "bytes", "--shard-bytes", "5KB", "--jobs", 2)
    conversions.prepare(*words, tmp_path / "processes")
    conversions.prepare(*words, tmp_path / "ray", "--engine", "ray")
    assert conversions.files(tmp_path / "ray") == conversions.files(tmp_path / "processes")
    runs.wait_until(lambda: not _ray_processes() - before, "the end of Ray's processes")


def test_without_ray_the_error_says_what_to_install(tmp_path: Path) -> None:
    conversions.write_texts(tmp_path / "texts")
    program = "import sys; sys.modules['ray'] = None; from iostack.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", program, "prepare", str(tmp_path / "texts"), str(tmp_path / "out"), "--to", "mds"]
    done = subprocess.run([*command, "--engine", "ray"], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (
        1,
        "error: the engine 'ray' needs Ray\nhint: pip install \"iostack[ray]\"\n",
    )
