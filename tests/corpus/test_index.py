"""Indexing: the manifest it writes, what a rerun counts, and where it goes when the corpus cannot be written to."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import corpora
import pytest

import iostack
from iostack.corpus.index import build_manifest
from iostack.errors import CorpusError, ShardError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    for number in range(4):
        corpora.write_jsonl(folder / f"{number}.jsonl", corpora.texts(10 + number))
    return folder


def test_the_manifest_holds_the_counts(folder: Path) -> None:
    done = build_manifest(folder)
    assert (done.num_counted, done.file) == (4, f"{folder}/.iostack/manifest.arrow")
    corpus = iostack.open_corpus(folder)
    assert corpus.indexed
    assert corpus.manifest.samples is not None
    assert corpus.manifest.samples.tolist() == [10, 11, 12, 13]
    assert corpus.fingerprint == done.manifest.fingerprint


def test_a_rerun_counts_only_what_changed(folder: Path) -> None:
    build_manifest(folder)
    assert build_manifest(folder).num_counted == 0
    corpora.write_jsonl(folder / "1.jsonl", corpora.texts(99))
    corpora.write_jsonl(folder / "4.jsonl", corpora.texts(1))
    assert build_manifest(folder).num_counted == 2
    (folder / "0.jsonl").unlink()
    done = build_manifest(folder)
    assert done.num_counted == 0
    assert done.manifest.samples is not None
    assert done.manifest.samples.tolist() == [99, 12, 13, 1]
    assert len(iostack.open_corpus(folder)) == 125


def test_a_rewrite_of_the_same_size_is_counted_again(folder: Path) -> None:
    build_manifest(folder)
    path = folder / "0.jsonl"
    path.write_bytes(path.read_bytes().replace(b"}\n", b"} ", 1))
    os.utime(path, ns=(1, 1))
    assert build_manifest(folder).num_counted == 1
    assert len(iostack.open_corpus(folder)) == 9 + 11 + 12 + 13


def test_progress_ends_at_the_number_of_shards(folder: Path) -> None:
    seen: list[tuple[int, int]] = []
    build_manifest(folder, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (4, 4)
    assert seen == sorted(seen)


def test_a_damaged_manifest_is_an_error_and_is_written_anew(folder: Path) -> None:
    build_manifest(folder)
    sidecar = folder / ".iostack" / "manifest.arrow"
    sidecar.write_bytes(sidecar.read_bytes()[:-30])
    with pytest.raises(CorpusError, match="the manifest is damaged") as caught:
        iostack.open_corpus(folder)
    assert "iostack index" in caught.value.hint
    assert build_manifest(folder).num_counted == 4
    assert len(iostack.open_corpus(folder)) == 46


def test_a_shard_that_cannot_be_read_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    for number in range(6):
        corpora.write_tar(tmp_path / f"{number}.tar", corpora.images(3))
    os.truncate(tmp_path / "3.tar", 1000)
    with pytest.raises(ShardError, match=r"3\.tar.*truncated"):
        build_manifest(tmp_path)
    assert not (tmp_path / ".iostack").exists()


@pytest.mark.parametrize("refuse", ["write", "one file"])
def test_a_corpus_that_cannot_be_written_to_keeps_its_manifest_in_the_cache_folder(
    folder: Path, cache_dir: Path, refuse: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = folder / "1.jsonl" if refuse == "one file" else folder
    if refuse == "write":
        monkeypatch.setattr("iostack.corpus.local_origin.LocalOrigin.write", lambda self, path, data: False)
    done = build_manifest(uri)
    assert done.file.startswith(str(cache_dir / "manifests"))
    assert not (folder / ".iostack").exists()
    assert len(iostack.open_corpus(uri)) == (11 if refuse == "one file" else 46)
    monkeypatch.undo()
    monkeypatch.setenv("IOSTACK_CACHE", str(cache_dir))
    if refuse == "write":
        corpora.write_jsonl(folder / "0.jsonl", corpora.texts(1))
        assert build_manifest(folder).file == f"{folder}/.iostack/manifest.arrow"
        assert not list((cache_dir / "manifests").iterdir())


def test_a_killed_indexer_leaves_no_manifest(folder: Path) -> None:
    """Killed at the last moment before the rename, by the write itself."""
    program = (
        "import os, signal, sys, pathlib\n"
        "from iostack.corpus.index import build_manifest\n"
        "pathlib.Path.replace = lambda self, target: os.kill(os.getpid(), signal.SIGKILL)\n"
        "build_manifest(sys.argv[1])\n"
    )
    killed = subprocess.run([sys.executable, "-c", program, str(folder)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not (folder / ".iostack" / "manifest.arrow").exists()
    assert not iostack.open_corpus(folder).indexed
    assert build_manifest(folder).num_counted == 4


def test_tokens_are_counted_too(tmp_path: Path) -> None:
    documents = corpora.documents(30)
    corpora.write_tokens(tmp_path / "a", documents)
    manifest = build_manifest(tmp_path).manifest
    assert (manifest.total_samples, manifest.total_tokens) == (30, len(corpora.flat(documents)))
    corpus = iostack.open_corpus(tmp_path)
    assert corpus.manifest.shard(0).companions[0].path == "a.idx"
    assert len(corpus) == 30


def test_threads_do_not_change_the_manifest(folder: Path, tmp_path: Path) -> None:
    one = build_manifest(folder, threads=1, cache_dir=tmp_path / "1").manifest
    (folder / ".iostack" / "manifest.arrow").unlink()
    assert build_manifest(folder, threads=16, cache_dir=tmp_path / "2").manifest.fingerprint == one.fingerprint
