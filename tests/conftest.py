"""Fixtures for all tests. ``import corpora`` gives the writers of corpora (tests/corpora.py)."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def cache_dir(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache folder of this test and of the processes it starts; never the user's own."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("IOSTACK_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session")
def s3_options() -> Iterator[dict[str, Any]]:
    """Storage options of a real S3 server: the one that the environment names, or one started for this session."""
    names = ("ENDPOINT", "KEY", "SECRET")
    given = [os.environ.get(f"IOSTACK_TEST_S3_{name}") for name in names]
    if all(given):
        yield dict(zip(("endpoint_url", "key", "secret"), given))
        return
    from s3_server import S3Server, what_is_missing

    if missing := what_is_missing():
        pytest.skip(missing)
    # Unix sockets lie in the folder, so its path must be short.
    folder = Path(tempfile.mkdtemp(prefix="iostack-s3-"))
    server = S3Server(folder)
    yield server.options
    server.stop()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def s3_folder(s3_options: dict[str, Any]) -> Iterator[str]:
    """The URI of an empty folder in a bucket of the S3 server."""
    import fsspec

    fs = fsspec.filesystem("s3", **s3_options)
    fs.mkdirs("iostack-test", exist_ok=True)
    folder = f"iostack-test/{uuid.uuid4().hex}"
    yield f"s3://{folder}"
    if fs.exists(folder):
        fs.rm(folder, recursive=True)
