"""MosaicML's shards of JSON lines and separated values: written by its own writers, read as its own readers give them."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import peers
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import iostack
from iostack.corpus.index import build_manifest
from iostack.errors import CorpusError, FormatError, SampleError, ShardError

streaming = peers.streaming()

COLUMNS = {"i": "int", "t": "str", "f": "float"}
WRITERS: dict[str, tuple[str, dict[str, Any]]] = {
    "json": ("JSONWriter", {}),
    "csv": ("CSVWriter", {}),
    "tsv": ("TSVWriter", {"newline": "\r\n"}),
    "xsv": ("XSVWriter", {"separator": "|é|"}),
}


def write(folder: Path, kind: str, samples: list[dict[str, Any]], **settings: Any) -> Path:
    name, options = WRITERS[kind]
    with getattr(streaming, name)(
        out=str(folder), columns=COLUMNS, **{"size_limit": 500} | options | settings
    ) as writer:
        for sample in samples:
            writer.write(sample)
    return folder


def rows(count: int) -> list[dict[str, Any]]:
    return [{"i": number - 3, "t": "ü" * (number % 7), "f": number / 3} for number in range(count)]


def read_all(folder: Path, **options: Any) -> list[Any]:
    with iostack.open_corpus(folder, **options) as corpus:
        readers = [corpus.open_shard(shard) for shard in range(corpus.num_shards)]
        return [sample for reader in readers for sample in reader.read(range(reader.counts.samples))]


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n,\t|"), max_size=20)


@pytest.mark.parametrize("kind", WRITERS)
@settings(max_examples=10, deadline=None)
@given(
    drawn=st.lists(st.fixed_dictionaries({"i": st.integers(), "t": TEXT, "f": st.floats(allow_nan=False)}), min_size=1)
)
def test_all_values_are_what_mosaicml_reads(kind: str, drawn: list[dict[str, Any]]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = write(Path(name) / "mds", kind, drawn)
        ours, theirs = read_all(folder), peers.mosaic_samples(folder)
        assert ours == theirs == drawn
        assert [list(map(type, each.values())) for each in ours] == [list(map(type, each.values())) for each in theirs]


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("compression", [None, "zstd:7", "gz", "bz2", "br", "snappy"])
def test_each_compression_and_hash_gives_the_same_samples(tmp_path: Path, kind: str, compression: str | None) -> None:
    folder = write(tmp_path / "mds", kind, rows(60), compression=compression, hashes=["sha1", "xxh3_64"])
    with iostack.open_corpus(folder) as corpus:
        assert (len(corpus), corpus.ignored, corpus.format.name) == (60, (), "mds-text")
        assert corpus.num_shards > 1
    assert read_all(folder) == rows(60)


def test_what_streaming_dataset_gives_is_what_we_give(tmp_path: Path) -> None:
    folder = write(tmp_path / "mds", "csv", rows(50))
    dataset = streaming.StreamingDataset(local=str(folder), shuffle=False, batch_size=1)
    assert read_all(folder) == [dataset[number] for number in range(50)]


def test_a_manifest_counts_them_and_a_loader_gives_each_once(tmp_path: Path) -> None:
    folder = write(tmp_path / "mds", "xsv", rows(40), compression="zstd")
    assert build_manifest(folder).manifest.total_samples == 40
    loader = iostack.Loader(iostack.open_corpus(folder), batch_size=10, epochs=1)
    given_back = [value for batch in loader for value in batch["i"].tolist()]
    assert sorted(given_back) == [row["i"] for row in rows(40)]


@pytest.mark.parametrize("damaged", ["shard.00001.csv", "shard.00001.csv.meta"])
@pytest.mark.parametrize("change", ["cut", "flip", "gone"])
def test_damaged_files_are_named(tmp_path: Path, damaged: str, change: str) -> None:
    folder = write(tmp_path / "mds", "csv", rows(60), hashes=["md5"])
    path = folder / damaged
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    if change == "gone":
        path.unlink()
    else:
        path.write_bytes(data[:-1] if change == "cut" else data)
    expected = {"cut": rf"{damaged}: \d+ bytes, index.json says \d+", "flip": rf"{damaged}: its md5 is"}
    with pytest.raises(ShardError, match=expected.get(change, r"index.json names shard.00001.csv, which is not there")):
        read_all(folder)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("1.50,2", "2 values for 3 columns"),
        ("1,2,3,4", "4 values for 3 columns"),
        ("x,2,long", "could not convert string to float"),
        ("0.5,x,hi", "invalid literal for int"),
        ("\udcff,1,long", "can't decode byte"),
    ],
)
def test_a_row_that_is_none_is_a_bad_sample(tmp_path: Path, line: str, reason: str) -> None:
    samples = [{"i": 1, "t": "x" * 20, "f": 1.5}, *rows(3)]
    folder = write(tmp_path / "mds", "csv", samples)
    path = folder / "shard.00000.csv"
    header, first, *others = path.read_bytes().split(b"\n")
    broken = line.encode(errors="surrogateescape").ljust(len(first), b"x")
    path.write_bytes(b"\n".join([header, broken, *others]))
    bad, *good = read_all(folder)
    assert isinstance(bad, SampleError)
    assert "shard.00000.csv: row 0: " in bad.message
    assert reason in bad.message
    assert good == samples[1:]


def test_rows_that_lie_outside_of_the_shard_or_not_in_order_are_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "mds", "csv", rows(3))
    meta = folder / "shard.00000.csv.meta"
    data = meta.read_bytes()
    for at, value in ((16, 2**32 - 1), (8, 0)):
        meta.write_bytes(data[:at] + value.to_bytes(4, "little") + data[at + 4 :])
        with pytest.raises(ShardError, match=r"csv.meta: rows that lie outside of the shard or not in order"):
            read_all(folder)
    meta.write_bytes((2).to_bytes(4, "little") + data[4:])
    with pytest.raises(ShardError, match=r"csv.meta: it does not place the 3 rows that index.json says"):
        read_all(folder)


@pytest.mark.parametrize("value", ["[1, 2]", "7", "NaN", "{", "", "[" * 200])
def test_json_that_is_no_object_is_a_bad_sample(tmp_path: Path, value: str) -> None:
    folder = write(tmp_path / "mds", "json", [{"i": 1, "t": "x" * 300, "f": 1.5}], size_limit=None)
    path = folder / "shard.00000.json"
    path.write_bytes(value.encode().ljust(path.stat().st_size))
    [bad] = read_all(folder)
    assert isinstance(bad, SampleError)


def test_a_text_without_its_meta_is_no_shard(tmp_path: Path) -> None:
    folder = write(tmp_path / "mds", "csv", rows(3))
    (folder / "shard.00000.csv.meta").unlink()
    with pytest.raises(FormatError, match="no known format"):
        iostack.open_corpus(folder)


HOSTILE = [
    {"raw_data": {"basename": "../shard.00000.csv"}},
    {"raw_data": {"bytes": 10**30}},
    {"raw_meta": {"bytes": -1}},
    {"raw_meta": None},
    {"raw_meta": {"hashes": {"sha1": 5}}},
    {"zip_data": 5},
    {"samples": 10**18},
    {"samples": 4},
    {"samples": "5"},
    {"format": "parquet"},
    {"format": ["csv"]},
    {"version": 3},
    {"column_names": []},
    {"column_names": ["i", "i", "t"]},
    {"column_names": [["i"], "t", "f"]},
    {"column_names": ["f", "i"]},
    {"column_encodings": ["float", "int", "pkl"]},
    {"column_encodings": ["float", "int", ["str"]]},
    {"newline": ""},
    {"newline": 5},
    {"newline": "\ud800"},
]


@pytest.mark.parametrize("change", HOSTILE, ids=json.dumps)
def test_a_hostile_index_is_our_error(tmp_path: Path, change: dict[str, Any]) -> None:
    folder = write(tmp_path / "mds", "csv", rows(5), size_limit=None)
    index = folder / "index.json"
    described = json.loads(index.read_text())
    for key, value in change.items():
        old = described["shards"][0][key]
        described["shards"][0][key] = old | value if isinstance(old, dict) and isinstance(value, dict) else value
    index.write_text(json.dumps(described))
    try:
        samples = read_all(folder)
    except CorpusError:
        return
    assert samples == rows(5) or all(isinstance(sample, SampleError) for sample in samples)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("fuzz") / "mds", "tsv", rows(5), size_limit=None)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), name=st.sampled_from(["shard.00000.tsv", "shard.00000.tsv.meta"]))
def test_damaged_bytes_give_only_our_errors(written: Path, data: st.DataObject, name: str) -> None:
    damaged = bytearray((written / name).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1) | st.integers(0, 30))] = data.draw(st.integers(0, 255))
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made) / "mds"
        shutil.copytree(written, folder)
        (folder / name).write_bytes(damaged)
        try:
            for sample in read_all(folder, cache_dir=folder / "cache"):
                assert isinstance(sample, dict | SampleError)
        except ShardError:
            pass
