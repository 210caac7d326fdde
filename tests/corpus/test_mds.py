"""MDS shards: written by MosaicML's own writer, read sample for sample as its own reader gives them."""

from __future__ import annotations

import io
import json
import re
import shutil
import tempfile
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import peers
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import iostack
from iostack.corpus.index import build_manifest
from iostack.errors import CorpusError, FormatError, SampleError, ShardError

streaming = peers.streaming()
Image = pytest.importorskip("PIL.Image")

INT64 = st.integers(-(2**63), 2**63 - 1)
SCALARS = {name: name for name in ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64")}
SCALARS |= {name: name for name in ("float16", "float32", "float64")}


def write(folder: Path, columns: dict[str, str], samples: list[dict[str, Any]], **settings: Any) -> Path:
    with streaming.MDSWriter(out=str(folder), columns=columns, **{"size_limit": 3000} | settings) as writer:
        for sample in samples:
            writer.write(sample)
    return folder


def numbers(count: int) -> list[dict[str, Any]]:
    return [{"i": number, "t": "x" * (number % 7)} for number in range(count)]


NUMBERS = {"i": "int", "t": "str"}


def read_all(folder: Path, **options: Any) -> list[Any]:
    with iostack.open_corpus(folder, **options) as corpus:
        return [
            sample
            for shard in range(corpus.num_shards)
            for sample in corpus.open_shard(shard).read(range(corpus.open_shard(shard).counts.samples))
        ]


def same(ours: Any, theirs: Any) -> bool:
    if isinstance(theirs, Image.Image):
        ours = Image.open(io.BytesIO(ours)) if isinstance(ours, bytes) else ours
        return (ours.mode, ours.size, ours.tobytes()) == (theirs.mode, theirs.size, theirs.tobytes())
    if isinstance(theirs, list):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    if isinstance(theirs, np.ndarray):
        return ours.dtype == theirs.dtype and ours.shape == theirs.shape and ours.tobytes() == theirs.tobytes()
    return type(ours) is type(theirs) and (ours == theirs or repr(ours) == repr(theirs) == "nan")


def assert_same(ours: list[Any], theirs: list[dict[str, Any]]) -> None:
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        assert list(mine) == list(other)
        for name, value in other.items():
            assert same(mine[name], value), name


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_every_encoding_gives_what_mosaicml_reads(data: st.DataObject) -> None:
    image = Image.fromarray(np.arange(60, dtype=np.uint8).reshape(4, 5, 3))
    grey = Image.fromarray(np.arange(20, dtype=np.uint8).reshape(4, 5))
    jpeg = io.BytesIO()
    image.save(jpeg, "JPEG")
    shapes = st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple)
    kinds = st.sampled_from(["uint8", "int16", "float16", "uint64", "float64"])
    columns = {
        "bytes": "bytes", "str": "str", "int": "int", **SCALARS, "si": "str_int", "sf": "str_float", "sd": "str_decimal",
        "array": "ndarray", "typed": "ndarray:int32", "shaped": "ndarray:float32:2,3", "json": "json", "pil": "pil",
        "grey": "pil", "jpeg": "jpeg", "png": "png", "jpegs": "jpegarray", "jpegs2": "jpeg_array", "lp": "list[pil]",
        "lj": "list[jpeg]", "lg": "list[png]",
    }  # fmt: skip
    samples = [
        {
            "bytes": data.draw(st.binary(max_size=20)),
            "str": data.draw(st.text(max_size=20)),
            "int": data.draw(INT64),
            **{name: np.dtype(name).type(data.draw(st.integers(0, 100))) for name in SCALARS},
            "si": data.draw(st.integers()),
            "sf": data.draw(st.floats()),
            "sd": data.draw(st.decimals(allow_nan=False)),
            "array": np.full(data.draw(shapes), 3, data.draw(kinds)),
            "typed": np.full(data.draw(shapes), -7, np.int32),
            "shaped": np.full((2, 3), 0.5, np.float32),
            "json": data.draw(st.recursive(st.none() | st.integers() | st.text(max_size=5), st.lists, max_leaves=5)),
            "pil": image,
            "grey": grey,
            "jpeg": image,
            "png": image,
            "jpegs": [jpeg.getvalue()] * 2,
            "jpegs2": [jpeg.getvalue()],
            "lp": [image, grey],
            "lj": [image] * data.draw(st.integers(0, 2)),
            "lg": [image, grey],
        }
        for _ in range(3)
    ]
    with tempfile.TemporaryDirectory() as name:
        folder = write(Path(name) / "mds", columns, samples)
        assert_same(read_all(folder), peers.mosaic_samples(folder))


@pytest.mark.parametrize("compression", [None, "zstd", "zstd:7", "gz", "gz:1", "bz2:3", "br:4", "snappy"])
def test_each_compression_and_hash_gives_the_same_samples(tmp_path: Path, compression: str | None) -> None:
    folder = write(tmp_path / "mds", NUMBERS, numbers(400), compression=compression, hashes=["sha1", "xxh3_64"])
    corpus = iostack.open_corpus(folder)
    assert (len(corpus), corpus.ignored) == (400, ())
    assert corpus.num_shards > 1
    assert_same(read_all(folder), numbers(400))


def test_what_streaming_dataset_gives_is_what_we_give(tmp_path: Path) -> None:
    folder = write(tmp_path / "mds", NUMBERS, numbers(300))
    dataset = streaming.StreamingDataset(local=str(folder), shuffle=False, batch_size=1)
    assert_same(read_all(folder), [dataset[number] for number in range(300)])


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # merge_index leaves files open
def test_streams_in_folders_are_one_corpus_with_and_without_a_merged_index(tmp_path: Path) -> None:
    from streaming.base.util import merge_index

    for name in ("a", "b"):
        write(tmp_path / "mds" / name, NUMBERS, numbers(200))
    assert_same(read_all(tmp_path / "mds"), numbers(200) * 2)
    merge_index(str(tmp_path / "mds"))
    for name in ("a", "b"):
        (tmp_path / "mds" / name / "index.json").unlink()
    assert_same(read_all(tmp_path / "mds"), numbers(200) * 2)


def test_a_plain_shard_is_taken_before_its_compressed_form(tmp_path: Path) -> None:
    folder = write(tmp_path / "mds", NUMBERS, numbers(50), compression="zstd")
    entry = json.loads((folder / "index.json").read_text())["shards"][0]
    import zstandard

    packed = folder / entry["zip_data"]["basename"]
    (folder / entry["raw_data"]["basename"]).write_bytes(zstandard.decompress(packed.read_bytes()))
    packed.write_bytes(b"rubbish")
    assert_same(read_all(folder), numbers(50))


def test_counts_come_from_the_index_alone(tmp_path: Path) -> None:
    folder = write(tmp_path / "mds", NUMBERS, numbers(300))
    for path in folder.glob("*.mds"):
        path.write_bytes(bytes(path.stat().st_size))
    assert len(iostack.open_corpus(folder)) == 300


def test_pickles_are_refused_until_their_column_is_named(tmp_path: Path) -> None:
    folder = write(tmp_path / "mds", {"a": "pkl", "i": "int"}, [{"a": {"x": Decimal(1)}, "i": 1}])
    with pytest.raises(ShardError, match="the column 'a' is pickled") as refused:
        read_all(folder)
    assert "-o allow_pickle=a" in refused.value.hint
    with pytest.raises(ShardError, match="is pickled"):
        read_all(folder, allow_pickle="b")
    assert read_all(folder, allow_pickle="a") == [{"a": {"x": Decimal(1)}, "i": 1}]
    assert read_all(folder, allow_pickle=["b", "a"]) == [{"a": {"x": Decimal(1)}, "i": 1}]


@pytest.mark.parametrize("kind", ["sha1", "sha256", "md5", "xxh3_64", "xxh128"])
def test_a_flipped_bit_is_found_by_the_hash_of_the_index(tmp_path: Path, kind: str) -> None:
    folder = write(tmp_path / "mds", NUMBERS, numbers(50), hashes=[kind])
    path = folder / "shard.00000.mds"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ShardError, match=rf"shard.00000.mds: its {kind} is"):
        read_all(folder)


def test_a_hash_that_nobody_can_compute_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write(tmp_path / "mds", NUMBERS, numbers(5), hashes=["sha1"])
    index = folder / "index.json"
    index.write_text(index.read_text().replace('"sha1": "', '"foo9": "'))
    assert_same(read_all(folder), numbers(5))
    assert "not verified: its hashes are of unknown kinds: foo9" in caplog.text


def test_a_shard_that_is_gone_or_not_named_is_told(tmp_path: Path) -> None:
    folder = write(tmp_path / "mds", NUMBERS, numbers(300))
    shutil.copy(folder / "shard.00000.mds", folder / "shard.99999.mds")
    with pytest.raises(ShardError, match=r"index.json does not name it"):
        iostack.open_corpus(folder)
    (folder / "shard.99999.mds").unlink()
    (folder / "shard.00001.mds").unlink()
    with pytest.raises(
        ShardError,
        match=rf"^{re.escape(str(folder))}/index.json names shard.00001.mds, which is not there",
    ):
        iostack.open_corpus(folder)
    with pytest.raises(
        ShardError,
        match=rf"^{re.escape(str(folder))}/index.json names shard.00001.mds, which is not there",
    ):
        build_manifest(folder)


def test_shards_without_an_index_are_refused_in_a_line(tmp_path: Path) -> None:
    folder = write(tmp_path / "mds", NUMBERS, numbers(5))
    with pytest.raises(FormatError, match=r"has no index.json beside it"):
        iostack.open_corpus(folder / "shard.00000.mds")


HOSTILE = [
    {"shards": [{"raw_data": {"basename": "../shard.00000.mds"}}]},
    {"shards": [{"raw_data": {"basename": "/etc/passwd"}}]},
    {"shards": [{"raw_data": {"bytes": 10**30}}]},
    {"shards": [{"raw_data": {"bytes": -1}}]},
    {"shards": [{"raw_data": {"bytes": True}}]},
    {"shards": [{"raw_data": []}]},
    {"shards": [{"raw_data": {"hashes": [1]}}]},
    {"shards": [{"raw_data": {"hashes": {"sha1": 5}}}]},
    {"shards": [{"samples": 10**18}]},
    {"shards": [{"samples": -1}]},
    {"shards": [{"samples": "5"}]},
    {"shards": [{"column_names": ["i", "i"]}]},
    {"shards": [{"column_names": [["i"], "t"]}]},
    {"shards": [{"column_sizes": [-8, None]}]},
    {"shards": [{"column_sizes": [10**40, None]}]},
    {"shards": [{"column_encodings": ["nonsense", "str"]}]},
    {"shards": [{"column_encodings": ["ndarray:object", "str"]}]},
    {"shards": [{"column_encodings": ["ndarray:int8:-1", "str"]}]},
    {"shards": [{"column_encodings": ["ndarray:int8:99999999999999999999,9", "str"]}]},
    {"shards": [{"format": "csv"}]},
    {"shards": 5},
    {"shards": [7]},
    {"version": 3},
    {"version": []},
]


def _merge(base: Any, change: Any) -> Any:
    if isinstance(base, dict) and isinstance(change, dict):
        return base | {key: _merge(base.get(key), value) for key, value in change.items()}
    if isinstance(base, list) and isinstance(change, list) and base and change and isinstance(change[0], dict):
        return [_merge(base[0], change[0]), *base[1:]]
    return change


@pytest.mark.parametrize("change", HOSTILE, ids=json.dumps)
def test_a_hostile_index_is_our_error(tmp_path: Path, change: Any) -> None:
    folder = write(tmp_path / "mds", NUMBERS, numbers(5))
    index = folder / "index.json"
    index.write_text(json.dumps(_merge(json.loads(index.read_text()), change)))
    try:
        samples = read_all(folder)
    except CorpusError:
        return
    assert all(isinstance(sample, SampleError) for sample in samples)


@pytest.mark.parametrize(
    "text", ["", "[]", "{", "[" * 100_000, '{"shards": []}', '{"version": 2, "shards": null}', "\xff"]
)
def test_an_index_that_is_none_is_our_error(tmp_path: Path, text: str) -> None:
    folder = write(tmp_path / "mds", NUMBERS, numbers(5))
    (folder / "index.json").write_text(text, "latin-1")
    with pytest.raises(CorpusError, match=r"index\.json"):
        read_all(folder)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    image = Image.fromarray(np.arange(60, dtype=np.uint8).reshape(4, 5, 3))
    columns = {"i": "int", "t": "str", "a": "ndarray", "p": "pil", "l": "list[png]", "j": "json", "d": "str_decimal"}
    sample = {"i": 1, "t": "text", "a": np.ones((2, 3)), "p": image, "l": [image], "j": [1], "d": Decimal("1.5")}
    return write(tmp_path_factory.mktemp("fuzz") / "mds", columns, [sample] * 3)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_damaged_shards_give_only_our_errors(mixed: Path, data: st.DataObject) -> None:
    original = (mixed / "shard.00000.mds").read_bytes()
    damaged = bytearray(original)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(original) - 1) | st.integers(0, 20))
        damaged[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.just(len(damaged)) | st.integers(0, len(damaged)))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "index.json").write_bytes((mixed / "index.json").read_bytes())
        (folder / "shard.00000.mds").write_bytes(damaged[:cut])
        try:
            for sample in read_all(folder, cache_dir=folder / "cache"):
                assert isinstance(sample, dict | SampleError)
        except ShardError:
            pass


def test_sizes_that_lie_allocate_nothing(mixed: Path, tmp_path: Path) -> None:
    import tracemalloc

    shutil.copy(mixed / "index.json", tmp_path)
    data = (mixed / "shard.00000.mds").read_bytes()
    picture = data.index(b"RGB") - 12
    hostile = data[:picture] + b"\xff\xff\xff\x00" * 2 + data[picture + 8 :]
    (tmp_path / "shard.00000.mds").write_bytes(hostile)
    tracemalloc.start()
    first, *others = read_all(tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert isinstance(first, SampleError)
    assert "column 'p'" in first.message
    assert all(isinstance(sample, dict) for sample in others)
    assert peak < 4 << 20


def test_a_remote_index_is_read_once_for_all_shards_and_once_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fsspec

    folder = write(tmp_path / "mds", NUMBERS, numbers(600))
    memory = fsspec.filesystem("memory")
    memory.put(str(folder), "/mds-once", recursive=True)
    loads: list[int] = []
    parse, size = json.loads, (folder / "index.json").stat().st_size
    monkeypatch.setattr("iostack.corpus.shared_index.json.loads", lambda text: loads.append(len(text)) or parse(text))
    try:
        corpus = iostack.open_corpus("memory://mds-once")
        assert (corpus.num_shards > 4, len(corpus), loads.count(size)) == (True, 600, 1)
        assert_same([corpus[number] for number in range(600)], numbers(600))
        assert loads.count(size) == 2
    finally:
        memory.rm("/mds-once", recursive=True)
