"""Fixtures for all tests. ``import corpora`` gives the writers of corpora (tests/corpora.py)."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def cache_dir(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache folder of this test and of the processes it starts; never the user's own."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("IOSTACK_CACHE", str(folder))
    return folder
