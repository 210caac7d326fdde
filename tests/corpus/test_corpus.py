"""Opening a corpus: what it finds, what it refuses, and reading it by position, shard and row."""

from __future__ import annotations

import os
import pickle
import shutil
import threading
from pathlib import Path

import corpora
import numpy as np
import pytest

import iostack
from iostack.corpus import corpus as corpus_module
from iostack.corpus.index import build_manifest
from iostack.errors import CorpusError, CorpusNotFoundError, FormatError, OriginError, ShardError, UsageError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three JSONL shards of 10, 0 and 5 samples."""
    folder = tmp_path / "corpus"
    corpora.write_jsonl(folder / "a.jsonl", corpora.texts(10))
    corpora.write_jsonl(folder / "b.jsonl", [])
    corpora.write_jsonl(folder / "sub" / "c.jsonl", corpora.texts(5, start=10))
    return folder


def test_shards_are_found_in_order_and_the_rest_is_ignored(folder: Path) -> None:
    (folder / "README.md").write_text("read me")
    (folder / ".hidden.jsonl").write_text("{}")
    corpus = iostack.open_corpus(folder)
    assert [corpus.manifest.path(i) for i in range(3)] == ["a.jsonl", "b.jsonl", "sub/c.jsonl"]
    assert [info.path for info in corpus.ignored] == ["README.md"]
    assert corpus.shard_name(2) == f"{folder}/sub/c.jsonl"


@pytest.mark.parametrize("spell", [str, lambda path: path, lambda path: f"file://{path}", lambda path: f"{path}/"])
def test_a_folder_may_be_spelt_as_path_or_uri(folder: Path, spell: object) -> None:
    assert iostack.open_corpus(spell(folder)).num_shards == 3  # type: ignore[operator]


def test_samples_are_read_by_position_over_all_shards(folder: Path) -> None:
    build_manifest(folder)
    corpus = iostack.open_corpus(folder)
    assert len(corpus) == 15
    assert list(corpus) == corpora.texts(15)
    assert corpus[-1] == corpora.texts(15)[-1]
    assert corpus[np.int64(10)] == corpora.texts(15)[10]
    for no_index in (1.5, "1", None, slice(0, 2)):
        with pytest.raises(TypeError, match="cannot be interpreted as an integer"):
            corpus[no_index]  # type: ignore[index]
    for outside in (15, -16):
        with pytest.raises(IndexError):
            corpus[outside]


def test_length_of_an_uncounted_corpus_says_what_to_run(folder: Path) -> None:
    corpus = iostack.open_corpus(folder)
    assert corpus.manifest.samples is None
    for ask in (lambda: len(corpus), lambda: corpus[0]):
        with pytest.raises(CorpusError, match="have not been counted") as caught:
            ask()
        assert caught.value.hint == f"run: iostack index {folder}"


def test_one_file_is_a_corpus_of_one_shard(folder: Path) -> None:
    corpus = iostack.open_corpus(folder / "a.jsonl")
    assert (corpus.num_shards, corpus.shard_name(0)) == (1, f"{folder}/a.jsonl")
    assert len(corpus.open_shard(0).read(range(10))) == 10


def test_local_plain_shards_are_read_in_place(folder: Path, cache_dir: Path) -> None:
    corpus = iostack.open_corpus(folder)
    assert all(corpus.is_resident(shard) for shard in range(3))
    corpus.fetch_shard(0)
    corpus.open_shard(0)
    assert not (cache_dir / "objects").exists()


def test_a_copy_is_the_same_corpus(folder: Path, tmp_path: Path) -> None:
    plain = iostack.open_corpus(folder).fingerprint
    build_manifest(folder)
    indexed = iostack.open_corpus(folder).fingerprint
    assert plain != indexed  # counts are part of it
    copy = tmp_path / "elsewhere"
    shutil.copytree(folder, copy, copy_function=shutil.copyfile)
    assert iostack.open_corpus(copy).fingerprint == indexed
    assert list(iostack.open_corpus(copy)) == list(iostack.open_corpus(folder))
    shutil.rmtree(copy / ".iostack")
    assert iostack.open_corpus(copy).fingerprint == plain
    corpora.write_jsonl(copy / "a.jsonl", corpora.texts(9))
    assert iostack.open_corpus(copy).fingerprint != plain


def test_a_corpus_pickles_as_its_uri(folder: Path) -> None:
    build_manifest(folder)
    again = pickle.loads(pickle.dumps(iostack.open_corpus(folder)))
    assert list(again) == corpora.texts(15)


def test_open_readers_are_bounded_and_stay_valid_in_use(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus_module, "_OPEN_READERS", 1)
    corpus = iostack.open_corpus(folder)
    first = corpus.open_shard(0)
    assert corpus.open_shard(0) is first
    corpus.open_shard(2)
    assert corpus.open_shard(0) is not first
    assert first.read([9]) == [corpora.texts(10)[9]]


def test_arrays_stay_valid_after_their_corpus_is_closed(tmp_path: Path) -> None:
    documents = corpora.documents(20)
    corpora.write_tokens(tmp_path / "a", documents)
    with iostack.open_corpus(tmp_path) as corpus:
        samples = [sample["tokens"] for sample in corpus]
    np.testing.assert_array_equal(np.concatenate(samples), corpora.flat(documents))


def test_threads_that_open_one_shard_share_its_reader(folder: Path) -> None:
    corpus = iostack.open_corpus(folder)
    barrier, readers = threading.Barrier(8), []

    def open_it() -> None:
        barrier.wait()
        readers.append(corpus.open_shard(0))

    threads = [threading.Thread(target=open_it) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(readers) == 8
    assert len({id(reader) for reader in readers}) == 1


def test_links_are_followed_and_links_in_a_circle_end(folder: Path, tmp_path: Path) -> None:
    (folder / "sub" / "up").symlink_to(folder)
    (folder / "broken.jsonl").symlink_to(tmp_path / "nowhere")
    (folder / "d.jsonl").symlink_to(corpora.write_jsonl(tmp_path / "elsewhere", corpora.texts(2)))
    os.mkfifo(folder / "pipe.jsonl")
    corpus = iostack.open_corpus(folder)
    assert [corpus.manifest.path(i) for i in range(corpus.num_shards)] == [
        "a.jsonl",
        "b.jsonl",
        "d.jsonl",
        "sub/c.jsonl",
    ]
    assert corpus.open_shard(2).counts.samples == 2


def test_nothing_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(CorpusNotFoundError, match="there is no such file or folder"):
        iostack.open_corpus(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CorpusNotFoundError, match="the folder is empty"):
        iostack.open_corpus(tmp_path / "empty")
    with pytest.raises(CorpusNotFoundError):
        iostack.open_corpus("/dev/zero")


def test_an_unknown_format_names_what_was_found(tmp_path: Path) -> None:
    (tmp_path / "a.xyz").write_text("?")
    with pytest.raises(FormatError, match=r"no known format among 1 objects \(1 \.xyz\)"):
        iostack.open_corpus(tmp_path)


def test_mixed_formats_are_refused_unless_one_is_chosen(folder: Path) -> None:
    corpora.write_tar(folder / "z.tar", corpora.images(1))
    with pytest.raises(FormatError, match=r"several formats: 3 of jsonl \(a.jsonl, ...\); 1 of webdataset"):
        iostack.open_corpus(folder)
    assert iostack.open_corpus(folder, format="webdataset").num_shards == 1
    with pytest.raises(UsageError, match="there is no format 'csv'"):
        iostack.open_corpus(folder, format="csv")


def test_a_scheme_that_nobody_opens_is_named() -> None:
    with pytest.raises(OriginError, match="nothing opens foo://"):
        iostack.open_corpus("foo://bucket/corpus")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda path: os.truncate(path, 100), "shrank from [0-9]+ to 100 bytes since it was indexed"),
        (lambda path: path.write_bytes(path.read_bytes() * 2), "grew from"),
        (lambda path: path.unlink(), "is gone since it was indexed"),
        (
            lambda path: path.write_bytes(path.read_bytes().replace(b"}\n", b"} ", 1)),
            "holds 9 samples, the manifest says 10",
        ),
    ],
)
def test_a_shard_that_changed_since_it_was_indexed_is_refused(folder: Path, change: object, said: str) -> None:
    build_manifest(folder)
    change(folder / "a.jsonl")  # type: ignore[operator]
    corpus = iostack.open_corpus(folder)
    with pytest.raises(ShardError, match=f"{folder}/a.jsonl {said}") as caught:
        corpus.open_shard(0)
    assert caught.value.hint == f"run: iostack index {folder}"


def test_more_shards_than_open_files_are_allowed_can_be_held_open(tmp_path: Path) -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for number in range(60):
        corpora.write_jsonl(tmp_path / f"{number:03}.jsonl", corpora.texts(2))
    corpus = iostack.open_corpus(tmp_path)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 20, hard))
    try:
        readers = [corpus.open_shard(shard) for shard in range(60)]
        assert all(len(reader.read([0, 1])) == 2 for reader in readers)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _write_shards(folder: Path, format: str, count: int) -> None:
    for number in range(count):
        if format == "tokens":
            corpora.write_tokens(folder / f"{number:03}", corpora.documents(3))
        elif format == "webdataset":
            corpora.write_tar(folder / f"{number:03}.tar", corpora.images(3))
        else:
            corpora.write_jsonl(folder / f"{number:03}.jsonl", corpora.texts(3))


@pytest.mark.parametrize("format", ["jsonl", "tokens", "webdataset"])
def test_an_open_shard_holds_one_descriptor(tmp_path: Path, format: str) -> None:
    _write_shards(tmp_path, format, 20)
    corpus = iostack.open_corpus(tmp_path)
    for shard in range(20):  # builds the row indexes, which are mapped the next time
        corpus.open_shard(shard)
    corpus.close()
    corpus = iostack.open_corpus(tmp_path)
    before = len(os.listdir("/proc/self/fd"))
    readers = [corpus.open_shard(shard) for shard in range(20)]
    assert [len(reader.read([0, 2])) for reader in readers] == [2] * 20
    assert len(os.listdir("/proc/self/fd")) - before <= 20


def test_opening_a_corpus_allows_as_many_files_as_the_system_does(tmp_path: Path) -> None:
    import resource

    corpora.write_jsonl(tmp_path / "a.jsonl", corpora.texts(2))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, hard), hard))
    try:
        iostack.open_corpus(tmp_path)
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
