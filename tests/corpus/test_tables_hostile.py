"""Damaged and hostile tables: only our own errors come out, in bounded memory, and never wrong lengths or a crash."""

from __future__ import annotations

import io
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import iostack
from iostack.errors import IostackError, SampleError, ShardError

ROWS = 120
MEMORY_BYTES = 4 << 30


def table() -> pa.Table:
    """A table with columns of every way of reading."""
    numbers = range(ROWS)
    return pa.table(
        {
            "text": [f"word {i} " * (i % 9) if i % 7 else None for i in numbers],
            "number": list(numbers),
            "list": [[i] * (i % 4) for i in numbers],
            "struct": [{"a": i, "b": [str(i)]} for i in numbers],
            "map": pa.array([[("k", i)] for i in numbers], pa.map_(pa.string(), pa.int64())),
            "time": pa.array(numbers, pa.timestamp("ns")),
            "view": pa.array([str(i) * 20 for i in numbers]).cast(pa.string_view()),
        }
    )


def _ipc(new: Any, rows: pa.Table, **options: Any) -> bytes:
    sink = io.BytesIO()
    with new(sink, rows.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(rows, max_chunksize=50)
    return sink.getvalue()


def _parquet(rows: pa.Table, **options: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(rows, sink, row_group_size=50, **options)
    return sink.getvalue()


def files() -> dict[str, bytes]:
    """The same table in every packing."""
    whole = table()
    words = whole.append_column("word", pa.array([str(i % 3) for i in range(ROWS)]).dictionary_encode())
    return {
        "dictionary.parquet": _parquet(words.drop_columns(["view"])),
        "zstd.parquet": _parquet(whole.drop_columns(["view"]), compression="zstd", use_dictionary=False),
        "file.arrow": _ipc(pa.ipc.new_file, whole),
        "stream.arrow": _ipc(pa.ipc.new_stream, whole),
        "lz4.arrow": _ipc(pa.ipc.new_file, whole, compression="lz4"),
        "zstd.arrow": _ipc(pa.ipc.new_stream, words, compression="zstd"),
        "words.arrow": _ipc(pa.ipc.new_file, words),
    }


def read_whole(path: Path) -> list[Any]:
    """Open a corpus of one file and read all its rows."""
    reader = iostack.open_corpus(path).open_shard(0)
    samples = list(reader.read(range(min(reader.counts.samples, 1000))))
    assert all(isinstance(sample, dict | SampleError) for sample in samples)
    repr(samples)  # looks at every value
    return samples


def damage_and_read(folder: Path, seed: int, times: int) -> None:
    """Read files with a few bytes changed, or cut short; runs in a process of its own, with little memory."""
    import random

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    chooser, originals = random.Random(seed), files()
    for number in range(times):
        name = chooser.choice(sorted(originals))
        data = bytearray(originals[name])
        if chooser.random() < 0.15:
            del data[chooser.randrange(len(data)) :]
        else:
            ends = [chooser.randrange(len(data)), chooser.randrange(800), len(data) - 1 - chooser.randrange(2500)]
            for _ in range(chooser.choice([1, 1, 2, 5, 20])):
                data[chooser.choice(ends)] = chooser.choice([0, 127, 128, 255, chooser.randrange(256)])
        path = folder / f"{number}-{name}"
        path.write_bytes(data)
        try:
            read_whole(path)
        except IostackError:
            continue
        finally:
            path.unlink()


@pytest.mark.parametrize("seed", [1, 2])
def test_flipped_bytes_and_cut_files_give_our_errors_alone(tmp_path: Path, seed: int) -> None:
    code = (
        f"import sys; from pathlib import Path; sys.path.insert(0, {str(Path(__file__).parent)!r}); "
        f"import test_tables_hostile as hostile; hostile.damage_and_read(Path({str(tmp_path)!r}), {seed}, 600)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=110)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", files())
def test_a_file_cut_anywhere_is_an_error(tmp_path: Path, name: str) -> None:
    data = files()[name]
    for number, length in enumerate({0, 1, 7, 8, 11, 40, len(data) // 2, len(data) - 9, len(data) - 5, len(data) - 1}):
        path = tmp_path / f"{number}-{name}"
        path.write_bytes(data[:length])
        with pytest.raises(ShardError, match="damaged"):
            read_whole(path)


def _offsets(*values: int) -> bytes:
    return b"".join(value.to_bytes(4, "little", signed=True) for value in values)


@pytest.mark.parametrize("offsets", [(0, 5, 2, 9), (0, 5, 6, 900), (-4, 5, 6, 9), (0, 1 << 30, 6, 9)])
@pytest.mark.parametrize("values", [["one, ", "t", "wo."], [[1] * 5, [2], [3] * 3]])
def test_offsets_that_run_backwards_or_out_of_the_file_are_refused(
    tmp_path: Path, values: list[Any], offsets: tuple[int, ...]
) -> None:
    honest = _ipc(pa.ipc.new_stream, pa.table({"v": values}))
    assert honest.count(_offsets(0, 5, 6, 9)) == 1
    (tmp_path / "a.arrow").write_bytes(honest.replace(_offsets(0, 5, 6, 9), _offsets(*offsets)))
    with pytest.raises(ShardError, match="damaged"):
        read_whole(tmp_path / "a.arrow")


def test_a_bomb_is_refused_before_its_memory_is_taken(tmp_path: Path) -> None:
    honest = _ipc(pa.ipc.new_stream, pa.table({"n": [7] * 50}), compression="zstd")
    size = (50 * 8).to_bytes(8, "little")
    assert honest.count(size) == 1
    (tmp_path / "a.arrow").write_bytes(honest.replace(size, (1 << 40).to_bytes(8, "little")))
    with pytest.raises(ShardError, match="decompression bomb"):
        read_whole(tmp_path / "a.arrow")


def test_what_unpacks_to_a_thousand_times_its_size_is_refused(tmp_path: Path, cache_dir: Path) -> None:
    line = pa.array(["x" * 1_000_000]).dictionary_encode().dictionary
    text = pa.DictionaryArray.from_arrays(pa.array([0] * 600, pa.int32()), line)
    pq.write_table(pa.table({"t": text}), tmp_path / "a.parquet", compression="zstd")
    with pytest.raises(ShardError, match="decompression bomb"):
        read_whole(tmp_path / "a.parquet")
    assert not [path for path in (cache_dir / "objects").rglob("*") if path.is_file()]


def test_pickled_extension_types_are_not_unpickled(tmp_path: Path) -> None:
    import pickle

    mark = tmp_path / "mark"

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (mark,)

    field = pa.field(
        "e",
        pa.int64(),
        metadata={"ARROW:extension:name": "arrow.py_extension_type", "ARROW:extension:metadata": pickle.dumps(Evil())},
    )
    rows = pa.Table.from_arrays([pa.array([1, 2])], schema=pa.schema([field]))
    for name, data in (("a.arrow", _ipc(pa.ipc.new_file, rows)), ("a.parquet", _parquet(rows))):
        (tmp_path / name).write_bytes(data)
        assert read_whole(tmp_path / name) == [{"e": 1}, {"e": 2}]
    assert not mark.exists()


def test_lists_that_are_views_of_the_same_values_are_not_unpacked(tmp_path: Path) -> None:
    honest = pa.array([[1, 2], None, [3]], pa.list_view(pa.int8()))
    starts, lengths = pa.array([0] * 3, pa.int32()), pa.array([2] * 3, pa.int32())
    overlapping = pa.ListViewArray.from_arrays(starts, lengths, pa.array([1, 2], pa.int8()))
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    for name, column in (("honest", honest), ("overlapping", overlapping)):
        (tmp_path / name).mkdir()
        with pa.ipc.new_file(str(tmp_path / name / "0.arrow"), pa.schema({"a": column.type}), options=options) as file:
            file.write_batch(pa.record_batch([column], ["a"]))
    with iostack.open_corpus(tmp_path / "honest") as corpus:
        assert [row["a"] for row in corpus] == [[1, 2], None, [3]]
    with iostack.open_corpus(tmp_path / "overlapping") as corpus, pytest.raises(ShardError, match="overlap"):
        corpus.open_shard(0)
