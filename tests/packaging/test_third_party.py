"""A distribution as a third party writes it, installed into a fresh environment, and trained with."""

from __future__ import annotations

import json
import os
import shutil
import site
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pages
import pytest
import runs

DISTRIBUTION = pages.ROOT / "examples" / "custom_parallelism"
SETTINGS = """
[data]
seq_len = 16
batch_size = 8
lanes = 4
[model]
name = "mixer"
dim = 16
[train]
steps = 10
warmup_steps = 2
learning_rate = 1e-2
threads = 1
[checkpoint]
every = 5
"""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def _package_folders() -> list[str]:
    """Where the packages of this environment lie, in the order in which Python looks there."""
    wanted = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *site.getsitepackages()}
    if site.ENABLE_USER_SITE:
        wanted.add(site.getusersitepackages())
    return [path for path in sys.path if path in wanted]


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a fresh virtual environment that holds the distribution, and borrows all else from this one.

    The packages of this environment are added by a .pth file that has Python treat their folder as its own: so the .pth
    files there, such as that of an editable iostack, take effect too.
    """
    folder = tmp_path_factory.mktemp("third-party")
    venv.create(folder / "venv", symlinks=True)
    python = folder / "venv" / "bin" / "python"
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    own = Path(pages.run([str(python), "-c", ask], cwd=folder).strip())
    lines = [f"import site; site.addsitedir({path!r})" for path in _package_folders()]
    (own / "borrowed.pth").write_text("\n".join(lines) + "\n")

    source = folder / "source"
    shutil.copytree(DISTRIBUTION, source, ignore=shutil.ignore_patterns("__pycache__"))
    offline = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check", "-q"]
    pages.run([str(python), "-m", "pip", "install", *offline, str(source)], cwd=folder)
    shutil.rmtree(source)
    assert sorted(path.name for path in own.glob("custom_*.py")) == ["custom_mixer.py", "custom_sharded_average.py"]
    return python


@pytest.fixture
def environment() -> dict[str, str]:
    """This process's environment without what would let it find packages elsewhere."""
    return {name: value for name, value in pages.environment().items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A folder with a tiny corpus and settings."""
    runs.write_corpus(tmp_path / "corpus")
    (tmp_path / "run.toml").write_text(SETTINGS)
    return tmp_path


def _train(python: Path, folder: Path, name: str, *more: str, env: dict[str, str]) -> list[dict[str, object]]:
    command = [str(python), "-m", "iostack", "train", "corpus", "-c", "run.toml", "--run-dir", name, *more]
    pages.run(command, cwd=folder, env=env)
    return runs.read_lines(folder / name / "metrics.jsonl")


def test_this_environment_does_not_have_the_distribution() -> None:
    listed = json.loads(pages.run([sys.executable, "-m", "iostack", "plugins", "--json"], cwd=Path(os.sep)))
    assert "custom-parallelism" not in {plugin["distribution"] for plugin in listed}


def test_its_plugins_are_listed_first_with_their_distribution(
    python: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    listed = json.loads(pages.run([str(python), "-m", "iostack", "plugins", "--json"], cwd=tmp_path, env=environment))
    common = {"distribution": "custom-parallelism", "version": "1.0", "state": "loaded", "error": ""}
    assert listed[:2] == [
        {"name": "mixer", "module": "custom_mixer", "hooks": ["iostack_models"], **common},
        {"name": "sharded_average", "module": "custom_sharded_average", "hooks": ["iostack_parallelisms"], **common},
    ]
    assert {plugin["distribution"] for plugin in listed[2:]} == {"iostack"}
    assert {plugin["state"] for plugin in listed} == {"loaded"}


@pytest.mark.distributed
def test_its_model_and_parallelism_train_on_two_processes_as_one_process_does(
    python: Path, run: Path, environment: dict[str, str]
) -> None:
    use = ("-s", 'parallel.use=["sharded_average"]')
    one = _train(python, run, "one", env=environment)
    two = _train(python, run, "two", *use, "--procs", "2", env=environment)
    ours = _train(python, run, "ours", "--procs", "2", env=environment)
    assert len(one) == len(two) == len(ours) == 10
    for single, theirs, ddp in zip(one, two, ours, strict=True):
        assert theirs["samples_digest"] == single["samples_digest"]
        for key in ("loss", "grad_norm"):
            assert theirs[key] == pytest.approx(single[key], rel=1e-5)
            assert theirs[key] == pytest.approx(ddp[key], rel=1e-6)
    assert "sharded_average" in (run / "two" / "settings.toml").read_text()


@pytest.mark.distributed
def test_a_run_with_its_parallelism_resumes_with_the_same_bits(
    python: Path, run: Path, environment: dict[str, str]
) -> None:
    use = ("-s", 'parallel.use=["sharded_average"]', "--procs", "2")
    whole = _train(python, run, "whole", *use, env=environment)
    schedule = ("-s", "train.minimum_learning_rate=1e-2", *use)  # a constant rate: the schedule would end earlier
    flat = _train(python, run, "flat", *schedule, env=environment)
    _train(python, run, "parts", *schedule, "-s", "train.steps=5", env=environment)
    parts = _train(python, run, "parts", *schedule, env=environment)
    assert [line["step"] for line in parts] == list(range(1, 11))
    for key in ("loss", "grad_norm", "samples_digest"):
        assert [line[key] for line in parts] == [line[key] for line in flat]
    assert [line["samples_digest"] for line in flat] == [line["samples_digest"] for line in whole]


def test_wrong_options_are_refused_by_name(python: Path, run: Path, environment: dict[str, str]) -> None:
    command = [str(python), "-m", "iostack", "train", "corpus", "-c", "run.toml", "-s", "model.depth=3"]
    done = subprocess.run(command, cwd=run, env=environment, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "error: the model 'mixer' has no option 'depth'",
        "hint: it has dim, layers, width",
    ]
    assert not (run / "run").exists()
