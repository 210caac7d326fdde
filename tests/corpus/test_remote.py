"""Remote corpora: any fsspec scheme, brought whole into the cache, once; credentials stay out of messages."""

from __future__ import annotations

import io
import signal
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import corpora
import fsspec
import http_store
import pytest
import zstandard

import iostack
from iostack.corpus.index import build_manifest
from iostack.errors import CorpusError, CorpusNotFoundError, MissingExtraError, OriginError, ShardError


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    system = fsspec.filesystem("memory")
    yield system
    system.store.clear()
    system.pseudo_dirs[:] = [""]


def _jsonl(count: int, start: int = 0) -> bytes:
    import json

    return "".join(json.dumps(sample) + "\n" for sample in corpora.texts(count, start)).encode()


def _tar(count: int) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, data in corpora.images(count):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def test_any_fsspec_scheme_is_read_through_the_cache(memory: fsspec.AbstractFileSystem, cache_dir: Path) -> None:
    memory.pipe("/bucket/corpus/a.jsonl", _jsonl(10))
    memory.pipe("/bucket/corpus/sub/b.jsonl.zst", zstandard.compress(_jsonl(5, 10)))
    corpus = iostack.open_corpus("memory://bucket/corpus")
    assert [corpus.shard_name(i) for i in range(2)] == [
        "memory://bucket/corpus/a.jsonl",
        "memory://bucket/corpus/sub/b.jsonl.zst",
    ]
    assert not corpus.is_resident(1)
    corpus.fetch_shard(1)
    assert corpus.is_resident(1)
    assert not corpus.is_resident(0)
    assert build_manifest("memory://bucket/corpus").file == "memory://bucket/corpus/.iostack/manifest.arrow"
    assert list(iostack.open_corpus("memory://bucket/corpus")) == corpora.texts(15)
    assert not list(cache_dir.rglob("*.part"))
    assert not list(cache_dir.rglob("*.lock"))


def test_token_pairs_are_counted_without_being_brought_here(
    memory: fsspec.AbstractFileSystem, tmp_path: Path, cache_dir: Path
) -> None:
    documents = corpora.documents(20)
    for path in corpora.write_tokens(tmp_path / "a", documents):
        memory.pipe(f"/tokens/{path.name}", path.read_bytes())
    corpus = iostack.open_corpus("memory://tokens")
    assert len(corpus) == 20
    assert not (cache_dir / "objects").exists()
    assert corpus[3]["tokens"].tolist() == documents[3][0]


def test_one_remote_object_is_a_corpus(memory: fsspec.AbstractFileSystem, cache_dir: Path) -> None:
    memory.pipe("/bucket/a.jsonl", _jsonl(3))
    memory.pipe("/bucket/b.jsonl", _jsonl(4))
    uri = "memory://bucket/a.jsonl"
    assert iostack.open_corpus(uri).num_shards == 1
    assert build_manifest(uri).file.startswith(str(cache_dir / "manifests"))
    assert list(iostack.open_corpus(uri)) == corpora.texts(3)


def test_each_object_is_fetched_once_over_http(cache_dir: Path) -> None:
    with http_store.serve({"/c/a.tar": _tar(12), "/c/b.tar": _tar(3)}) as store:
        for _ in range(3):
            corpus = iostack.open_corpus(f"{store.uri}/c/")
            assert corpus.num_shards == 2
            for shard in range(2):
                corpus.fetch_shard(shard)
                corpus.open_shard(shard)
        assert store.gets == {"/c/a.tar": 1, "/c/b.tar": 1}
        reader = corpus.open_shard(0)
        assert list(reader.read(range(12))) == corpora.grouped(corpora.images(12))


def test_one_object_named_with_a_query_is_a_corpus(cache_dir: Path) -> None:
    with http_store.serve({"/a.jsonl": _jsonl(3)}) as store:  # it serves the object whatever the query says
        uri = f"{store.uri}/a.jsonl?key=sesame"
        assert build_manifest(uri).file.startswith(str(cache_dir / "manifests"))
        corpus = iostack.open_corpus(uri)
        assert corpus.indexed
        assert list(corpus) == corpora.texts(3)
        assert corpus.shard_name(0) == f"{store.uri}/a.jsonl?key=***"


def test_a_server_that_answers_below_its_one_object_gives_no_manifest() -> None:
    body = _jsonl(3)
    with http_store.serve({"/a.jsonl": body, "/a.jsonl/.iostack/manifest.arrow": body}) as store:
        assert not iostack.open_corpus(f"{store.uri}/a.jsonl?key=sesame").indexed


def test_a_secret_that_chooses_the_object_tells_two_corpora_apart() -> None:
    with http_store.serve({"/a.jsonl?key=A": _jsonl(3), "/a.jsonl?key=B": _jsonl(4)}) as store:
        for key, count in (("A", 3), ("B", 4)):
            build_manifest(f"{store.uri}/a.jsonl?key={key}")
            assert list(iostack.open_corpus(f"{store.uri}/a.jsonl?key={key}")) == corpora.texts(count)
        store.objects.update({f"/b.jsonl?key={key}": b'{"key": "%s"}\n' % key.encode() for key in "AB"})
        opened = [iostack.open_corpus(f"{store.uri}/b.jsonl?key={key}").open_shard(0) for key in "AB"]
        assert [reader.read([0]) for reader in opened] == [[{"key": "A"}], [{"key": "B"}]]


def test_the_query_of_a_folder_goes_with_every_request() -> None:
    with http_store.serve({"/c/a.jsonl": _jsonl(3)}) as store:
        corpus = iostack.open_corpus(f"{store.uri}/c/?token=sesame&x=")
        assert corpus.shard_name(0) == f"{store.uri}/c/a.jsonl?token=***&x="
        corpus.open_shard(0)
        assert "/c/a.jsonl?token=sesame&x=" in store.asked
        assert all(asked.endswith("?token=sesame&x=") for asked in store.asked)


def test_a_replaced_object_is_fetched_anew() -> None:
    with http_store.serve({"/c/a.jsonl": _jsonl(3)}) as store:
        assert len(iostack.open_corpus(f"{store.uri}/c/").open_shard(0).read([0, 1, 2])) == 3
        store.objects["/c/a.jsonl"] = _jsonl(3).replace(b"line", b"LINE")
        sample = iostack.open_corpus(f"{store.uri}/c/").open_shard(0).read([0])[0]
        assert sample["text"].startswith("LINE")


def test_a_version_may_be_a_date() -> None:
    with http_store.serve({"/c/a.jsonl": _jsonl(3)}) as store:
        store.versions = ("Last-Modified", "Sat, 01 Jan 2000 00:00:00 GMT")
        iostack.open_corpus(f"{store.uri}/c/").open_shard(0)
        store.objects["/c/a.jsonl"] = _jsonl(3).replace(b"line", b"LINE")
        store.versions = ("Last-Modified", "Sun, 02 Jan 2000 00:00:00 GMT")
        sample = iostack.open_corpus(f"{store.uri}/c/").open_shard(0).read([0])[0]
        assert sample["text"].startswith("LINE")


def test_a_remote_shard_that_shrank_is_named(memory: fsspec.AbstractFileSystem) -> None:
    memory.pipe("/bucket/a.jsonl", _jsonl(10))
    corpus = iostack.open_corpus("memory://bucket")
    memory.pipe("/bucket/a.jsonl", _jsonl(5))
    with pytest.raises(ShardError, match=r"memory://bucket/a.jsonl shrank from .* since it was indexed"):
        corpus.open_shard(0)
    memory.rm("/bucket/a.jsonl")
    with pytest.raises(ShardError, match="is gone since it was indexed"):
        corpus.open_shard(0)


def test_nothing_remote_says_so(memory: fsspec.AbstractFileSystem) -> None:
    with pytest.raises(CorpusNotFoundError, match="nothing is there"):
        iostack.open_corpus("memory://nowhere")


def test_a_manifest_cannot_reach_outside_its_corpus(memory: fsspec.AbstractFileSystem, tmp_path: Path) -> None:
    from iostack.corpus.manifest import SIDECAR, manifest_from_columns

    hostile = manifest_from_columns(format="jsonl", paths=["../secret.jsonl"], bytes=[3], samples=[1])
    memory.pipe(f"/bucket/corpus/{SIDECAR}", hostile.to_bytes())
    memory.pipe("/bucket/secret.jsonl", b"{}\n")
    with pytest.raises(CorpusError, match="climbs out of its root"):
        iostack.open_corpus("memory://bucket/corpus").open_shard(0)


def test_a_missing_client_answers_with_the_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(MissingExtraError) as caught:
        iostack.open_corpus("gs://bucket/corpus")
    assert caught.value.hint == 'pip install "iostack[gcs]"'


def test_credentials_never_show() -> None:
    with http_store.serve({}) as store:
        uri = store.uri.replace("http://", "http://user:hunter2@") + "/c/?token=sesame"
        with pytest.raises((OriginError, CorpusNotFoundError)) as caught:
            iostack.open_corpus(uri)
    for text in (str(caught.value), caught.value.hint):
        assert "hunter2" not in text
        assert "sesame" not in text


def test_storage_options_reach_the_file_system(tmp_path: Path) -> None:
    corpora.write_jsonl(tmp_path / "a.jsonl", corpora.texts(3))
    corpus = iostack.open_corpus("dir://", target_protocol="file", path=str(tmp_path))
    assert corpus.num_shards == 1
    with pytest.raises(OriginError, match="local files take no storage options: anon"):
        iostack.open_corpus(tmp_path, anon=True)


def test_a_store_that_falls_silent_is_given_up_and_the_object_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("iostack_fsspec._PATIENCE_S", 0.3)
    with http_store.serve({"/c/a.jsonl": _jsonl(2000)}) as store:
        corpus = iostack.open_corpus(f"{store.uri}/c/")
        store.stall.add("/c/a.jsonl")
        with pytest.raises(OriginError, match=rf"{store.uri}/c/a.jsonl: TimeoutError: nothing came for 0.3 s"):
            corpus.open_shard(0)


@pytest.mark.parametrize("format", ["jsonl", "tokens"])
def test_an_interrupt_ends_counting_although_the_store_hangs(tmp_path: Path, format: str) -> None:
    if format == "tokens":
        objects = {
            f"/c/{path.name}": path.read_bytes()
            for name in "ab"
            for path in corpora.write_tokens(tmp_path / name, corpora.documents(20))
        }
    else:
        objects = {"/c/a.jsonl": _jsonl(2000), "/c/b.jsonl": _jsonl(2000)}
    with http_store.serve(objects) as store:
        store.stall.update(objects)
        command = [sys.executable, "-m", "iostack", "index", f"{store.uri}/c/"]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            assert store.half_sent.wait(60)
            process.send_signal(signal.SIGINT)
            begun = time.monotonic()
            process.communicate(timeout=30)  # the store would hang for 60 s
            assert process.returncode == 130
            assert time.monotonic() - begun < 5


def test_a_store_that_fails_is_not_taken_for_one_that_holds_nothing() -> None:
    with http_store.serve({"/c/a.jsonl": _jsonl(3)}) as store:
        corpus = iostack.open_corpus(f"{store.uri}/c/")
        store.fails = True
        with pytest.raises(OriginError, match="503"):
            corpus.open_shard(0)


def test_a_server_that_cannot_be_reached_is_not_taken_for_one_that_holds_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(OriginError, match="ClientConnectorError: Cannot connect"):
        iostack.open_corpus(f"http://127.0.0.1:{port}/c/")


FORK = """
import os, sys
import iostack
corpus = iostack.open_corpus(sys.argv[1])
corpus.open_shard(0)
if (pid := os.fork()) == 0:
    print(corpus.open_shard(1).counts.samples, flush=True)
    os._exit(0)
os.waitpid(pid, 0)
"""


def test_a_corpus_that_was_used_goes_on_after_a_fork() -> None:
    with http_store.serve({"/c/a.jsonl": _jsonl(3), "/c/b.jsonl": _jsonl(4)}) as store:
        command = [sys.executable, "-W", "ignore", "-c", FORK, f"{store.uri}/c/"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "4\n"
