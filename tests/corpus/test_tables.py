"""Parquet and Arrow shards: rows equal those of pyarrow and of Hugging Face datasets, with any columns, in any order."""

from __future__ import annotations

import datetime
import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tables import tables

import iostack
from iostack.cli import main
from iostack.corpus.index import build_manifest
from iostack.errors import CorpusError, FormatError, SampleError, ShardError, UsageError

Write = Callable[[pa.Table, Path], None]


def _arrow(new: Any, **options: Any) -> Write:
    def write(table: pa.Table, path: Path) -> None:
        with new(str(path), table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
            writer.write_table(table, max_chunksize=7)

    return write


WRITERS: dict[str, tuple[str, Write]] = {
    "parquet": (".parquet", lambda table, path: pq.write_table(table, path, row_group_size=11)),
    "parquet zstd": (
        ".parquet",
        lambda table, path: pq.write_table(table, path, compression="zstd", data_page_version="2.0"),
    ),
    "file": (".arrow", _arrow(pa.ipc.new_file)),
    "stream": (".arrow", _arrow(pa.ipc.new_stream)),
    "lz4": (".feather", _arrow(pa.ipc.new_file, compression="lz4")),
    "zstd stream": (".arrow", _arrow(pa.ipc.new_stream, compression="zstd")),
}


def _open(table: pa.Table, folder: Path, writer: str, **options: Any) -> iostack.Corpus:
    suffix, write = WRITERS[writer]
    folder.mkdir(parents=True, exist_ok=True)
    write(table, folder / f"a{suffix}")
    return iostack.open_corpus(folder, **options)


def _rows(corpus: iostack.Corpus, shard: int = 0) -> list[Any]:
    reader = corpus.open_shard(shard)
    return list(reader.read(range(reader.counts.samples)))


@pytest.mark.parametrize("writer", WRITERS)
@settings(max_examples=40, deadline=None)
@given(table=tables(), data=st.data())
def test_rows_in_any_order_equal_to_pylist(
    tmp_path_factory: pytest.TempPathFactory, writer: str, table: pa.Table, data: st.DataObject
) -> None:
    corpus = _open(table, tmp_path_factory.mktemp("table"), writer)
    reader = corpus.open_shard(0)
    assert reader.counts.samples == len(corpus) == table.num_rows
    rows = data.draw(st.lists(st.integers(0, table.num_rows - 1), max_size=60)) if table.num_rows else []
    expected = table.to_pylist()
    assert reader.read(rows) == [expected[row] for row in rows]


@pytest.mark.parametrize("writer", WRITERS)
def test_chosen_columns_come_in_their_order_and_nothing_else(tmp_path: Path, writer: str) -> None:
    table = pa.table({"a": [1, 2, 3], "b": ["x", None, "z"], "c": [[1], [], [2, 3]]})
    corpus = _open(table, tmp_path, writer, columns=["c", "a"])
    whole = iostack.open_corpus(tmp_path)
    assert _rows(corpus) == table.select(["c", "a"]).to_pylist()
    assert [list(row) for row in _rows(corpus)] == [["c", "a"]] * 3
    assert _rows(whole) == table.to_pylist()
    assert corpus.fingerprint == whole.fingerprint
    assert list(pickle.loads(pickle.dumps(corpus))) == _rows(corpus)


@pytest.mark.parametrize("writer", WRITERS)
def test_an_unknown_column_is_an_error_that_names_the_nearest(tmp_path: Path, writer: str) -> None:
    corpus = _open(pa.table({"text": ["a"], "number": [1]}), tmp_path, writer, columns=["txt"])
    with pytest.raises(UsageError, match="no column 'txt'") as caught:
        corpus.open_shard(0)
    assert "text" in caught.value.hint


def test_columns_of_a_format_that_has_none_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n')
    with pytest.raises(UsageError, match="jsonl are read whole"):
        iostack.open_corpus(tmp_path, columns=["a"])
    with pytest.raises(UsageError, match="jsonl are read whole"):
        build_manifest(tmp_path, columns=["a"])
    for opened in (iostack.open_corpus, build_manifest):
        with pytest.raises(UsageError, match="empty"):
            opened(tmp_path, columns=[])


@pytest.mark.parametrize("writer", ["file", "stream"])
def test_plain_local_arrow_is_mapped_in_place(tmp_path: Path, cache_dir: Path, writer: str) -> None:
    corpus = _open(pa.table({"a": ["x", "y"]}), tmp_path, writer)
    assert corpus.is_resident(0)
    assert _rows(corpus) == [{"a": "x"}, {"a": "y"}]
    assert not (cache_dir / "objects").exists()


@pytest.mark.parametrize("writer", ["parquet", "lz4", "zstd stream"])
def test_what_cannot_be_mapped_is_unpacked_once_for_each_choice_of_columns(
    tmp_path: Path, cache_dir: Path, writer: str
) -> None:
    table = pa.table({"a": ["x", "y"], "b": ["z" * 100_000] * 2})
    corpus = _open(table, tmp_path, writer, columns=["a"])
    assert not corpus.is_resident(0)
    corpus.fetch_shard(0)
    assert corpus.is_resident(0)
    assert not iostack.open_corpus(tmp_path, columns=["b"]).is_resident(0)
    (made,) = [path for path in (cache_dir / "objects").rglob("*") if path.is_file()]
    assert made.stat().st_size < 10_000  # the other column was not written
    assert _rows(corpus) == table.select(["a"]).to_pylist()


def test_a_local_file_that_was_rewritten_is_unpacked_anew(tmp_path: Path) -> None:
    assert _rows(_open(pa.table({"a": ["one"]}), tmp_path, "parquet")) == [{"a": "one"}]
    assert _rows(_open(pa.table({"a": ["two"]}), tmp_path, "parquet")) == [{"a": "two"}]


def test_encodings_and_extensions_give_the_values_that_they_stand_for(tmp_path: Path) -> None:
    import uuid

    words = pa.array(["a", "b", None, "a"])
    identity = uuid.UUID(int=7)
    moment = datetime.datetime(2020, 1, 2, 3, 4, 5, 678901)
    table = pa.table(
        {
            "view": words.cast(pa.string_view()),
            "bytes_view": words.cast(pa.binary()).cast(pa.binary_view()),
            "runs": pyarrow.compute.run_end_encode(words),
            "words": pa.array([["a"], ["b", "a"], None, []], pa.list_(pa.dictionary(pa.int8(), pa.string()))),
            "uuid": pa.ExtensionArray.from_storage(pa.uuid(), pa.array([identity.bytes] * 4, pa.binary(16))),
            "nanoseconds": pa.array([moment] * 4, pa.timestamp("ns")),
            "half": pa.array([1.5, None, 2.0, 0.0], pa.float16()),
            "lists": pa.array([[1], [2, 3], None, []], pa.list_view(pa.int8())),
            "nothing": pa.nulls(4),
        }
    )
    plain = _open(table, tmp_path, "stream")
    for row, word in zip(_rows(plain), ["a", "b", None, "a"], strict=True):
        assert row["view"] == row["runs"] == word
        assert row["bytes_view"] == (None if word is None else word.encode())
        assert (row["uuid"], row["nanoseconds"], row["nothing"]) == (identity.bytes, moment, None)
    assert [row["words"] for row in _rows(plain)] == [["a"], ["b", "a"], None, []]
    assert [row["half"] for row in _rows(plain)] == [1.5, None, 2.0, 0.0]
    assert [row["lists"] for row in _rows(plain)] == [[1], [2, 3], None, []]


def test_views_of_lists_in_other_values_are_read_of_plain_arrow(tmp_path: Path) -> None:
    inner = [{"a": [1]}, {"a": None}, None, {"a": []}]
    table = pa.table({"inner": pa.array(inner, pa.struct({"a": pa.list_view(pa.int8())}))})
    assert [row["inner"] for row in _rows(_open(table, tmp_path, "stream"))] == inner


def test_counts_come_from_footers_and_headers_without_unpacking(tmp_path: Path, cache_dir: Path) -> None:
    table = pa.table({"a": range(50)})
    for writer in ("parquet", "stream"):
        corpus = _open(table, tmp_path / writer, writer)
        assert len(corpus) == 50
        assert build_manifest(tmp_path / writer).manifest.total_samples == 50
        assert iostack.open_corpus(tmp_path / writer).fingerprint == corpus.fingerprint
    assert not (cache_dir / "objects").exists()


@pytest.mark.parametrize("writer", WRITERS)
def test_a_shard_without_rows_is_empty(tmp_path: Path, writer: str) -> None:
    corpus = _open(pa.table({"a": pa.array([], pa.string()), "b": pa.array([], pa.list_(pa.int8()))}), tmp_path, writer)
    assert len(corpus) == 0
    assert _rows(corpus) == []


@pytest.mark.parametrize("writer", ["parquet", "stream", "lz4"])
def test_two_columns_of_one_name_are_refused(tmp_path: Path, writer: str) -> None:
    table = pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"])
    with pytest.raises(ShardError, match="two columns are named 'a'"):
        _open(table, tmp_path, writer).open_shard(0)


def _two(tmp_path: Path, first: pa.Table, second: pa.Table, **options: Any) -> iostack.Corpus:
    for name, table in (("a", first), ("b", second)):
        pq.write_table(table, tmp_path / f"{name}.parquet")
    corpus = iostack.open_corpus(tmp_path, **options)
    corpus.open_shard(0)
    return corpus


def test_shards_of_other_types_or_columns_are_refused_with_both_names(tmp_path: Path) -> None:
    corpus = _two(tmp_path, pa.table({"a": [1], "b": [2]}), pa.table({"a": ["x"], "b": [2]}))
    with pytest.raises(ShardError, match=r"'a' is int in .*a\.parquet and is string in .*b\.parquet"):
        corpus.open_shard(1)
    assert _rows(corpus.with_columns(["b"]), 1) == [{"b": 2}]
    corpus = _two(tmp_path, pa.table({"a": [1], "b": [2]}), pa.table({"a": [1]}))
    with pytest.raises(ShardError, match=r"'b' is int in .*a\.parquet and is missing in .*b\.parquet"):
        corpus.open_shard(1)


@pytest.mark.parametrize("writer", ["parquet", "file", "lz4"])
def test_indexing_finds_shards_whose_columns_differ_and_names_both(tmp_path: Path, writer: str) -> None:
    suffix, write = WRITERS[writer]
    for name, table in {
        "a": pa.table({"a": pa.nulls(1), "b": [2]}),
        "b": pa.table({"a": [1], "b": [2]}),
        "c": pa.table({"a": ["x"], "b": [3]}),
    }.items():
        write(table, tmp_path / f"{name}{suffix}")
    with pytest.raises(ShardError, match=rf"'a' is int in .*b\{suffix} and is string in .*c\{suffix}$"):
        build_manifest(tmp_path)
    assert build_manifest(tmp_path, columns=["b"]).manifest.total_samples == 3
    with pytest.raises(UsageError, match="no column 'bb'"):  # although there is nothing left to count
        build_manifest(tmp_path, columns=["bb"])
    write(pa.table({"b": [1]}), tmp_path / f"d{suffix}")
    with pytest.raises(UsageError, match="no column 'bb'"):
        build_manifest(tmp_path, columns=["bb"])


def test_a_shard_that_is_added_to_an_index_is_compared_with_those_there(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1]}), tmp_path / "a.parquet")
    build_manifest(tmp_path)
    pq.write_table(pa.table({"a": [1], "b": [1]}), tmp_path / "b.parquet")
    with pytest.raises(ShardError, match=r"'b' is missing in .*a\.parquet and is int in .*b\.parquet"):
        build_manifest(tmp_path)
    pq.write_table(pa.table({"a": [2]}), tmp_path / "b.parquet")
    assert build_manifest(tmp_path).manifest.total_samples == 2


def test_integers_of_another_size_and_columns_of_nulls_go_together(tmp_path: Path) -> None:
    first = pa.table({"a": pa.array([1], pa.int32()), "b": pa.array(["x"]), "c": pa.nulls(1)})
    second = pa.table({"a": pa.array([2], pa.int64()), "b": pa.array(["y"], pa.large_string()), "c": [3]})
    corpus = _two(tmp_path, first, second)
    assert list(corpus) == [{"a": 1, "b": "x", "c": None}, {"a": 2, "b": "y", "c": 3}]


def test_text_that_is_no_utf8_is_a_bad_sample(tmp_path: Path) -> None:
    blobs = pa.array([b"good", b"\xff\xfe", b"fine"])
    text = pa.Array.from_buffers(pa.string(), 3, blobs.buffers())
    for writer in ("stream", "parquet"):
        corpus = _open(pa.table({"t": text}), tmp_path / writer, writer)
        first, bad, last = _rows(corpus)
        assert (first, last) == ({"t": "good"}, {"t": "fine"})
        assert isinstance(bad, SampleError)
        assert "column 't'" in str(bad)


@pytest.fixture
def datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return pytest.importorskip("datasets")


def _dataset(datasets: Any) -> Any:
    rows = {
        "text": [f"Zeile {i} \U0001f600" if i % 5 else None for i in range(2500)],
        "tokens": [list(range(i % 7)) for i in range(2500)],
        "answer": [{"text": ["a", "b"][: i % 3], "start": [i]} for i in range(2500)],
        "label": [i % 3 for i in range(2500)],
    }
    return datasets.Dataset.from_dict(rows)


def test_what_datasets_saves_to_disk_is_read_sample_for_sample(tmp_path: Path, datasets: Any) -> None:
    _dataset(datasets).save_to_disk(tmp_path / "saved", num_shards=3)
    (tmp_path / "saved" / "cache-0123.arrow").write_bytes(b"left behind by map()")
    corpus = iostack.open_corpus(tmp_path / "saved")
    assert corpus.num_shards == 3
    assert list(corpus) == list(datasets.load_from_disk(str(tmp_path / "saved")))
    assert all(corpus.is_resident(shard) for shard in range(3))


def test_a_saved_dictionary_of_splits_asks_for_one_of_them(tmp_path: Path, datasets: Any) -> None:
    whole = _dataset(datasets).train_test_split(0.2, seed=0)
    whole.save_to_disk(tmp_path / "saved")
    with pytest.raises(FormatError, match=r"^/\S+: dataset_dict.json: .* the splits test, train") as caught:
        iostack.open_corpus(tmp_path / "saved")
    assert "URI/test" in caught.value.hint
    assert list(iostack.open_corpus(tmp_path / "saved" / "test")) == list(whole["test"])


def test_what_datasets_writes_as_parquet_is_read_sample_for_sample(tmp_path: Path, datasets: Any) -> None:
    folder = tmp_path / "hub" / "data"
    folder.mkdir(parents=True)
    for shard in range(2):
        _dataset(datasets).shard(2, shard).to_parquet(folder / f"train-{shard:05}-of-00002.parquet")
    loaded = datasets.load_dataset("parquet", data_dir=str(folder), split="train", cache_dir=str(tmp_path / "hf"))
    assert list(iostack.open_corpus(tmp_path / "hub")) == list(loaded)


def test_reading_imports_no_pandas(tmp_path: Path) -> None:
    table = pa.table({"a": ["x"], "t": pa.array([datetime.datetime(2020, 1, 1)], pa.timestamp("ns")), "l": [[1]]})
    for writer in ("parquet", "stream", "lz4"):
        _open(table, tmp_path / writer, writer)
        code = (
            "import sys, iostack\n"
            f"corpus = iostack.open_corpus({str(tmp_path / writer)!r})\n"
            "print(len(list(corpus)), 'pandas' in sys.modules)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
        assert done.stdout.split() == ["1", "False"]


def test_an_encrypted_or_cut_footer_says_so(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    for data, told in (
        (b"PAR1" + bytes(40) + b"PARE", "encrypted"),
        (b"PAR1" + bytes(40), "cut short"),
        (b"", "cut short"),
    ):
        path.write_bytes(data)
        with pytest.raises(CorpusError, match=told):
            len(iostack.open_corpus(tmp_path))


def test_remote_tables_are_counted_by_ranges_and_come_once(cache_dir: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    try:
        table = pa.table({"text": [f"row {i}" for i in range(40)], "n": range(40)})
        for writer in ("parquet", "zstd stream", "file"):
            suffix, write = WRITERS[writer]
            (cache_dir / "made").mkdir(parents=True, exist_ok=True)
            path = cache_dir / "made" / f"a{suffix}"
            write(table, path)
            uri = f"memory://tables/{writer.replace(' ', '-')}"
            memory.pipe(f"{uri}/a{suffix}", path.read_bytes())
            corpus = iostack.open_corpus(uri, columns=["text"])
            if writer == "parquet":
                assert len(corpus) == 40
                assert not (cache_dir / "objects").exists()
            assert not corpus.is_resident(0)
            corpus.fetch_shard(0)
            assert corpus.is_resident(0)
            memory.rm(f"{uri}/a{suffix}")  # what is here is enough
            assert _rows(corpus) == table.select(["text"]).to_pylist()
        assert not list(cache_dir.rglob("*.part"))
    finally:
        memory.store.clear()
        memory.pseudo_dirs[:] = [""]


def test_text_alone_is_read_where_nothing_else_is_looked_at(tmp_path: Path, cache_dir: Path) -> None:
    table = pa.table({"text": ["some words to cut"] * 50, "blob": ["y" * 100_000] * 50})
    corpus = _open(table, tmp_path, "parquet")
    with iostack.Loader(corpus, batch_size=2, seq_len=16, epochs=1) as loader:
        assert sum(int(batch["valid"].sum()) for batch in loader) > 10
    (made,) = [path for path in (cache_dir / "objects").rglob("*") if path.is_file()]
    assert made.stat().st_size < 100_000
    with pytest.raises(UsageError, match="no column 'txt'"):
        next(iter(iostack.Loader(corpus, batch_size=2, seq_len=16, text_column="txt")))


def test_two_processes_that_unpack_one_shard_share_the_work_of_one(tmp_path: Path, cache_dir: Path) -> None:
    table = pa.table({"text": ["some text " * 50] * 20_000})
    _open(table, tmp_path, "parquet")
    code = f"import iostack; print(len(list(iostack.open_corpus({str(tmp_path)!r}).open_shard(0).read([0, 19_999]))))"
    running = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [each.communicate(timeout=60)[0] for each in running] == ["2\n", "2\n"]
    assert len([path for path in (cache_dir / "objects").rglob("*") if path.is_file()]) == 1


def test_the_settings_choose_columns_for_all_sources_or_one(tmp_path: Path) -> None:
    from trainer.settings import resolve_settings
    from trainer.setup import open_sources

    _open(pa.table({"text": ["a"], "n": [1], "m": [2]}), tmp_path, "parquet")
    mix = f'data.sources=[{{uri="{tmp_path}"}}, {{uri="{tmp_path}", columns=["text", "m"]}}]'
    settings, _ = resolve_settings(assignments=['data.columns=["text"]', mix])
    assert [source.corpus.columns for source in open_sources(settings.data)] == [("text",), ("text", "m")]
    settings, _ = resolve_settings(uri=str(tmp_path))
    assert [source.corpus.columns for source in open_sources(settings.data)] == [None]


def test_the_commands_take_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _open(pa.table({"text": ["a" * 40] * 40, "n": range(40)}), tmp_path, "parquet")
    assert main(["inspect", str(tmp_path), "--columns", "n", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["first_sample"] == {"n": "0"}
    assert main(["bench", str(tmp_path), "--columns", "text", "--seconds", "0.1", "--json"]) == 0
    assert main(["inspect", str(tmp_path), "--columns", "tex"]) == 2
    assert "did you mean 'text'?" in capsys.readouterr().err


@pytest.mark.parametrize("scheme", ["", "memory://"])
def test_splits_side_by_side_are_refused_and_a_star_chooses_one(tmp_path: Path, scheme: str) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    (tmp_path / "data").mkdir()
    for shard in range(2):
        pq.write_table(pa.table({"a": [shard]}), tmp_path / "data" / f"train-{shard:05}-of-00002.parquet")
    pq.write_table(pa.table({"a": [9]}), tmp_path / "data" / "test-00000-of-00001.parquet")
    try:
        memory.put(str(tmp_path), "/splits", recursive=True)
        uri = f"{scheme}splits" if scheme else str(tmp_path)
        with pytest.raises(FormatError, match="data/ holds the splits test, train") as caught:
            iostack.open_corpus(uri)
        assert "'URI/data/train-*'" in caught.value.hint
        train = iostack.open_corpus(f"{uri}/data/train-*")
        assert list(train) == [{"a": 0}, {"a": 1}]
        assert train.shard_name(1) == f"{uri}/data/train-00001-of-00002.parquet"
        assert list(pickle.loads(pickle.dumps(train))) == list(train)
        done = build_manifest(f"{uri}/data/train-*")
        assert "manifests" in done.file
        assert iostack.open_corpus(f"{uri}/data/train-*").indexed
        assert not iostack.open_corpus(f"{uri}/data/test-*").indexed
        with pytest.raises(CorpusError, match="nothing matches"):
            iostack.open_corpus(f"{uri}/data/dev-*")
    finally:
        memory.store.clear()
        memory.pseudo_dirs[:] = [""]
