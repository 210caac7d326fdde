"""The cache: an object appears complete or not at all, whoever is killed, and is fetched by one process only."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import http_store
import pytest
from runs import wait_until

from iostack.cache import whole_objects
from iostack.cache.lock import fill_lock
from iostack.cache.residency import Item
from iostack.cache.whole_objects import WholeObjects
from iostack.errors import CacheError, OriginError

BODY = os.urandom(1 << 20)


class FolderSource:
    """An origin that copies from a folder, without being local; counts the copies."""

    def __init__(self, folder: Path) -> None:
        self.uri = "test://folder"
        self.folder = folder
        self.num_fetches = 0
        self.replace_during: set[int] = set()

    def info(self, path: str) -> object | None:
        file = self.folder / path
        return (file.stat().st_size, file.stat().st_mtime_ns) if file.exists() else None

    def local_path(self, path: str) -> Path | None:
        return None

    def fetch(self, path: str, destination: Path) -> None:
        self.num_fetches += 1
        shutil.copyfile(self.folder / path, destination)
        if self.num_fetches in self.replace_during:
            body = bytes([self.num_fetches]) * len(BODY)
            (self.folder / path).write_bytes(body)
            os.utime(self.folder / path, ns=(self.num_fetches, self.num_fetches))


@pytest.fixture
def source(tmp_path: Path) -> FolderSource:
    (tmp_path / "object").write_bytes(BODY)
    return FolderSource(tmp_path)


ITEM = Item("object", len(BODY), "v1")


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_an_object_is_fetched_once_and_then_found(source: FolderSource, cache_dir: Path) -> None:
    cache = WholeObjects(source, cache_dir, namespace="n")
    assert cache.find(ITEM) is None
    path = cache.bring(ITEM)
    assert path.read_bytes() == BODY
    assert cache.bring(ITEM) == cache.find(ITEM) == path
    assert WholeObjects(source, cache_dir, namespace="n").bring(ITEM) == path
    assert source.num_fetches == 1
    assert _files(cache_dir) == [path]


@pytest.mark.parametrize(
    ("namespace", "item"),
    [("other", ITEM), ("n", Item("object", len(BODY), "v2")), ("n", Item("object", len(BODY), "v1", "gzip"))],
)
def test_another_origin_version_or_variant_is_another_object(
    source: FolderSource, cache_dir: Path, namespace: str, item: Item
) -> None:
    WholeObjects(source, cache_dir, namespace="n").bring(ITEM)
    assert WholeObjects(source, cache_dir, namespace=namespace).find(item) is None


def test_a_wrong_size_is_refused_and_leaves_nothing(source: FolderSource, cache_dir: Path) -> None:
    cache = WholeObjects(source, cache_dir, namespace="n")
    with pytest.raises(OriginError, match="1,048,576 bytes came instead of 1,048,577"):
        cache.bring(Item("object", len(BODY) + 1))
    assert _files(cache_dir) == []


def test_an_object_replaced_while_it_was_fetched_is_fetched_again(source: FolderSource, cache_dir: Path) -> None:
    source.replace_during = {1}
    assert WholeObjects(source, cache_dir, namespace="n").bring(ITEM).read_bytes() == b"\1" * len(BODY)
    assert source.num_fetches == 2


def test_an_object_replaced_again_and_again_is_named_and_leaves_nothing(source: FolderSource, cache_dir: Path) -> None:
    source.replace_during = {1, 2}
    with pytest.raises(OriginError, match="test://folder object: it was replaced while it was fetched, twice"):
        WholeObjects(source, cache_dir, namespace="n").bring(ITEM)
    assert _files(cache_dir) == []


def test_a_failed_fetch_leaves_nothing_and_the_next_one_succeeds(source: FolderSource, cache_dir: Path) -> None:
    cache = WholeObjects(source, cache_dir, namespace="n")
    (source.folder / "object").rename(source.folder / "away")
    with pytest.raises(CacheError):
        cache.bring(ITEM)
    assert _files(cache_dir) == []
    (source.folder / "away").rename(source.folder / "object")
    assert cache.bring(ITEM).read_bytes() == BODY


def test_a_full_disk_is_refused_before_anything_is_fetched(
    source: FolderSource, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(whole_objects, "FREE_FLOOR_BYTES", 1 << 60)
    with pytest.raises(CacheError, match=r"is full: object takes 1,048,576 bytes, 0 are free") as caught:
        WholeObjects(source, cache_dir, namespace="n").bring(ITEM)
    assert "--cache-dir" in caught.value.hint
    assert source.num_fetches == 0


def test_a_disk_that_fills_up_during_a_fetch_is_named(
    tmp_path: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from iostack_fsspec import FsspecOrigin

    def no_space(self: object, source: str, destination: str) -> None:
        Path(destination).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("fsspec.implementations.memory.MemoryFileSystem.get_file", no_space)
    cache = WholeObjects(FsspecOrigin("memory://bucket", {}), cache_dir, namespace="n")
    with pytest.raises(CacheError, match="cannot be used: No space left on device"):
        cache.bring(Item("object", 100))
    assert _files(cache_dir) == []


def test_a_folder_that_cannot_be_made_is_named(source: FolderSource, tmp_path: Path) -> None:
    with pytest.raises(CacheError, match=r"object/cache cannot be used: Not a directory"):
        WholeObjects(source, tmp_path / "object" / "cache", namespace="n").bring(ITEM)


def test_threads_that_want_one_object_fetch_it_once(source: FolderSource, cache_dir: Path) -> None:
    cache = WholeObjects(source, cache_dir, namespace="n")
    barrier, found = threading.Barrier(8), []

    def bring() -> None:
        barrier.wait()
        found.append(cache.bring(ITEM).read_bytes() == BODY)

    threads = [threading.Thread(target=bring) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 8
    assert source.num_fetches == 1


def test_waiting_without_progress_ends_and_names_the_owner(source: FolderSource, cache_dir: Path) -> None:
    cache = WholeObjects(source, cache_dir, namespace="n", patience_s=0.2)
    target = cache.bring(ITEM)
    target.unlink()
    said = f"without progress for process {os.getpid()} to fetch test://folder object"
    with fill_lock(target, waits_for="it", patience_s=1.0), pytest.raises(OriginError, match=said):
        cache.bring(ITEM)
    assert cache.bring(ITEM).read_bytes() == BODY


def test_waiting_lasts_while_the_object_grows(source: FolderSource, cache_dir: Path) -> None:
    cache = WholeObjects(source, cache_dir, namespace="n", patience_s=0.5)
    target = cache.bring(ITEM)
    target.unlink()
    part, results = target.with_suffix(".part"), []
    with fill_lock(target, waits_for="it", patience_s=1.0):
        waiting = threading.Thread(target=lambda: results.append(cache.bring(ITEM)))
        waiting.start()
        for _ in range(6):  # together twice as long as the patience
            waiting.join(timeout=0.2)
            with part.open("ab") as file:
                file.write(b"more")
        assert results == []
        part.unlink()
    waiting.join(timeout=30)
    assert results == [target]


BRING = """
import sys
from pathlib import Path
import iostack
corpus = iostack.open_corpus(sys.argv[1])
print("opened", flush=True)
print(corpus.open_shard(0).counts.samples)
"""


def _start(store: http_store.Store) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", BRING, f"{store.uri}/c/"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def _lines(count: int) -> bytes:
    return b"".join(b'{"n": %d}\n' % i for i in range(count))


def test_a_process_killed_in_the_middle_leaves_nothing_that_looks_complete(cache_dir: Path) -> None:
    with http_store.serve({"/c/a.jsonl": _lines(200_000)}) as store:
        store.stall.add("/c/a.jsonl")
        with _start(store) as process:
            assert store.half_sent.wait(60)
            wait_until(lambda: bool(list((cache_dir / "objects").rglob("*.part"))), "the first bytes in the cache")
            process.send_signal(signal.SIGKILL)
            process.wait()
        assert [path.suffix for path in _files(cache_dir / "objects") if path.suffix != ".lock"] == [".part"]
        store.go_on.set()
        with _start(store) as process:
            assert process.communicate()[0].split() == ["opened", "200000"]
        assert len(_files(cache_dir / "objects")) == 1


def test_unfinished_files_of_killed_processes_are_swept(source: FolderSource, cache_dir: Path) -> None:
    folder = cache_dir / "objects" / "ab"
    folder.mkdir(parents=True)
    for name in ("abandoned.part", "abandoned.lock", "other.fetch.part", "held.part"):
        (folder / name).write_bytes(b"x")
    with fill_lock(folder / "held", waits_for="it", patience_s=1.0):
        WholeObjects(source, cache_dir, namespace="n").bring(ITEM)
        assert sorted(path.name for path in folder.iterdir()) == ["held.lock", "held.part"]


def test_two_processes_that_want_one_object_fetch_it_once(cache_dir: Path) -> None:
    with http_store.serve({"/c/a.jsonl": _lines(100_000)}) as store:
        store.stall.add("/c/a.jsonl")
        with _start(store) as first:
            assert store.half_sent.wait(60)
            with _start(store) as second:
                assert second.stdout is not None
                assert second.stdout.readline() == "opened\n"
                store.go_on.set()
                assert second.communicate()[0].split() == ["100000"]
            assert first.communicate()[0].split() == ["opened", "100000"]
        assert store.gets["/c/a.jsonl"] == 1
