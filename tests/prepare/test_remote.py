"""A target in an object store: the same shards as in a folder, a conditional lock, and one that is taken over."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import conversions
import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

import iostack
from iostack.errors import OriginError, PrepareError
from iostack.prepare import lock
from iostack.prepare.lock import LOCK, target_lock
from iostack.prepare.target import Target, open_target


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Target]:
    """A target in fsspec's store in memory."""
    yield open_target("memory://prepare/out", {}, tmp_path / "staging")
    system = fsspec.filesystem("memory")
    if system.exists("/prepare"):
        system.rm("/prepare", recursive=True)


@pytest.mark.s3
def test_a_bucket_gets_the_shards_of_a_folder(
    tmp_path: Path, s3_folder: str, s3_options: dict[str, Any], cache_dir: Path
) -> None:
    samples = conversions.write_texts(tmp_path / "texts")
    options = [word for name, value in s3_options.items() for word in ("-O", f"{name}={value}")]
    words = (tmp_path / "texts", "--to", "tokens", "--tokenizer", "bytes", "--shard-bytes", "9KB", "--jobs", 2)
    told = conversions.prepare(*words, s3_folder, *options)
    assert conversions.prepare(*words, s3_folder, *options)["pieces_made"] == 0
    conversions.prepare(*words, tmp_path / "out")
    system = fsspec.filesystem("s3", **s3_options)
    for name, data in conversions.files(tmp_path / "out").items():
        assert system.cat_file(f"{s3_folder}/{name}") == data
    with iostack.open_corpus(s3_folder, **s3_options) as corpus:
        assert (len(corpus), corpus.indexed, corpus.fingerprint) == (len(samples), True, told["fingerprint"])
    assert not system.exists(f"{s3_folder}/{LOCK}")
    assert not list((cache_dir / "prepare").rglob("piece-*"))


def test_a_held_lock_is_refused_and_names_its_owner(memory: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "_LOOK_EVERY_S", 0.0)
    monkeypatch.setattr(lock, "_RENEW_EVERY_S", 0.0)
    with target_lock(memory) as renew:
        monkeypatch.setattr(lock.time, "sleep", lambda _: renew())  # the owner lives
        with pytest.raises(PrepareError, match=f"being prepared by process {os.getpid()} on "), target_lock(memory):
            pass
        renew()
    assert memory.read(LOCK) is None


@pytest.mark.parametrize(("host", "pid"), [(socket.gethostname(), 2**22 + 1), ("elsewhere", 1)])
def test_the_lock_of_a_dead_owner_is_taken_over(
    memory: Target, monkeypatch: pytest.MonkeyPatch, host: str, pid: int
) -> None:
    monkeypatch.setattr(lock, "_LOOK_EVERY_S", 0.0)
    monkeypatch.setattr(lock, "_ABANDONED_AFTER_S", 0.0)
    memory.write(LOCK, json.dumps({"token": "old", "pid": pid, "host": host, "beat": 3}).encode())
    with target_lock(memory) as renew:
        renew()
        assert json.loads(memory.read(LOCK) or b"")["pid"] == os.getpid()
    assert memory.read(LOCK) is None


def test_an_owner_whose_lock_was_taken_stops(memory: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "_RENEW_EVERY_S", 0.0)
    with target_lock(memory) as renew:
        memory.write(LOCK, b'{"token": "new", "pid": 7, "host": "other"}')
        with pytest.raises(PrepareError, match="being prepared by process 7 on other"):
            renew()
    assert memory.read(LOCK) is not None


def test_files_of_a_remote_target(memory: Target, tmp_path: Path) -> None:
    assert memory.sizes() == {}
    assert memory.read("a") is None
    assert memory.create("a", b"1")
    assert not memory.create("a", b"2")
    (tmp_path / "file").write_bytes(b"data")
    memory.take(tmp_path / "file", "b")
    memory.write(".iostack/x", b"hidden")
    assert memory.sizes() == {"a": 1, "b": 4}
    assert not (tmp_path / "file").exists()
    memory.delete("a")
    memory.delete("a")
    assert memory.sizes() == {"b": 4}


class _StrictStore(MemoryFileSystem):  # type: ignore[misc]
    """A store whose client knows no options, as that of SFTP."""

    protocol = "strict"

    def __init__(self) -> None:
        super().__init__()

    def put_file(self, lpath: str, rpath: str, **options: Any) -> None:
        if "shard" in rpath or "part-" in rpath:
            raise OSError(f"no room for '{rpath}'")
        super().put_file(lpath, rpath, **options)


def test_a_store_whose_client_takes_no_options_is_named_in_full(tmp_path: Path) -> None:
    fsspec.register_implementation("strict", _StrictStore, clobber=True)
    target = open_target("strict://me:hunter2@host/out", {}, tmp_path / "staging")
    file = tmp_path / "part-0.jsonl"
    file.write_text("{}")
    with pytest.raises(OriginError, match=r"^strict://\*\*\*@host/out/part-0.jsonl: OSError: no room for ") as told:
        target.take(file, "part-0.jsonl")
    assert "hunter2" not in str(told.value)
