"""A tiny corpus and a run on it."""

from __future__ import annotations

from pathlib import Path

import pytest
import runs


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.write_corpus(tmp_path_factory.mktemp("data") / "corpus")


@pytest.fixture
def run(tmp_path: Path, corpus: Path) -> runs.Run:
    """A run that has not started."""
    settings = tmp_path / "run.toml"
    settings.write_text(runs.SETTINGS)
    return runs.Run(corpus, settings, tmp_path / "run")


@pytest.fixture
def plugin() -> dict[str, str]:
    """Environment that offers the callbacks of ``run_plugin.py``."""
    return {"IOSTACK_PLUGINS": "run_plugin", "PYTHONPATH": str(Path(__file__).parent)}
