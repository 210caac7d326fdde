"""What every place of a checkpoint must do; a store that cannot is refused."""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from iostack.errors import BrokenStepError, CheckpointError
from trainer.checkpoint import Checkpointer
from trainer.checkpoint.store import Store, open_store

from .steps import loaded_step, save_steps


@pytest.fixture(params=["path", "file", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    uri = {"path": f"{tmp_path}/a", "file": f"file://{tmp_path}/a", "memory": f"memory://{uuid.uuid4().hex}"}
    return open_store(uri[request.param], {})


def test_a_file_is_created_once(store: Store) -> None:
    assert store.create("a/b.json", b"one")
    assert not store.create("a/b.json", b"two")
    assert store.read("a/b.json", limit=3) == b"one"


def test_of_many_creators_at_once_one_wins(tmp_path: Path) -> None:
    store = open_store(str(tmp_path), {})
    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(lambda n: store.create("x.json", b"%d" % n), range(32)))
    assert sum(outcomes) == 1
    assert store.read("x.json", limit=10) == b"%d" % outcomes.index(True)
    assert store.files("") == {"x.json": len(store.read("x.json", limit=10))}


def test_ranges_files_and_folders(store: Store) -> None:
    with store.open_new("s/1/data") as sink:
        sink.write(memoryview(b"0123456789"))
    store.put("s/1/hint", b"a")
    store.put("s/1/hint", b"bc")
    assert bytes(store.read_range("s/1/data", 2, 5)) == b"234"
    assert bytes(store.read_range("s/1/data", 8, 50)) == b"89"
    assert store.files("s/1") == {"data": 10, "hint": 2}
    assert store.folders("s") == ["1"]
    assert store.files("s") == store.files("nothing") == {}
    with pytest.raises(FileNotFoundError):
        store.read("s/none", limit=1)
    with pytest.raises(BrokenStepError, match="more than the 9"):
        store.read("s/1/data", limit=9)
    store.delete("s/1/hint")
    store.delete("s/1/hint")
    store.delete_folder("s/1")
    store.delete_folder("s/1")
    assert store.folders("s") == []


class Racy(fsspec.AbstractFileSystem):
    protocol = "racy"


class Overwriting(MemoryFileSystem):
    protocol = "overwriting"
    store: dict[str, Any] = {}  # noqa: RUF012 - fsspec's own way

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        super().pipe_file(path, value)


def test_a_store_that_only_checks_and_then_writes_is_refused() -> None:
    fsspec.register_implementation("racy", Racy, clobber=True)
    with pytest.raises(CheckpointError, match="cannot create an object only if it does not exist"):
        Checkpointer("racy://folder")


def test_a_store_that_ignores_the_condition_is_refused() -> None:
    fsspec.register_implementation("overwriting", Overwriting, clobber=True)
    with pytest.raises(CheckpointError, match="overwrites what it was told to create only if"):
        Checkpointer("overwriting://folder").begin({})


def test_an_unknown_scheme_is_said() -> None:
    with pytest.raises(CheckpointError, match="checkpoints cannot lie at nowhere://x"):
        Checkpointer("nowhere://x")


@pytest.mark.s3
def test_steps_lie_in_s3(s3_folder: str, s3_options: dict[str, Any]) -> None:
    uri, options = s3_folder, s3_options
    store = open_store(uri, options)
    assert store.create("probe", b"one")
    assert not store.create("probe", b"two")
    save_steps(uri, 1, 2, 3, keep=2, storage_options=options)
    assert sorted(store.files("manifests")) == ["2.1.json", "3.1.json"]
    assert loaded_step(uri, storage_options=options) == 3
    store.delete("manifests/3.1.json")
    assert loaded_step(uri, storage_options=options) == 2
