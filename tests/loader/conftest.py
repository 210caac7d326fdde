"""Corpora that the tests of the loader share; nothing writes to them after they are made."""

from __future__ import annotations

import pytest

from .pipelines import Corpora, write_corpora


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Corpora:
    return write_corpora(tmp_path_factory.mktemp("corpora"))
