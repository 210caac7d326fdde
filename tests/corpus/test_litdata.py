"""litData chunks: written by litData's own writer, read sample for sample as its own dataset gives them."""

from __future__ import annotations

import json
import shutil
import tempfile
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import peers
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import iostack
from iostack.corpus.index import build_manifest
from iostack.errors import CorpusError, FormatError, SampleError, ShardError

litdata = peers.litdata()
# Its writer warns of chunks that grow past their size, its reader leaves them open.
pytestmark = pytest.mark.filterwarnings(
    "ignore:An item was larger",
    "ignore:The given buffer is not writable",
    "ignore::pytest.PytestUnraisableExceptionWarning",
    "ignore::ResourceWarning",
)

INT64 = st.integers(-(2**63), 2**63 - 1)
PACKINGS: Sequence[dict[str, str]] = (
    {},
    {"compression": "zstd"},
    {"compression": "zstd:7", "compression_level": "chunk"},
    {"compression": "zstd", "compression_level": "sample"},
)


def theirs(folder: Path, **options: Any) -> list[Any]:
    dataset = litdata.StreamingDataset(str(folder), **options)
    return [dataset[number] for number in range(len(dataset))]


def ours(folder: Path, **options: Any) -> list[Any]:
    with iostack.open_corpus(folder, **options) as corpus:
        readers = [corpus.open_shard(shard) for shard in range(corpus.num_shards)]
        return [sample for reader in readers for sample in reader.read(range(reader.counts.samples))]


def same(mine: Any, other: Any) -> bool:
    if isinstance(other, torch.Tensor):
        return isinstance(mine, np.ndarray) and torch.equal(torch.from_numpy(mine.copy()), other)
    if isinstance(other, np.ndarray):
        return (mine.dtype, mine.shape, mine.tobytes()) == (other.dtype, other.shape, other.tobytes())
    if isinstance(other, dict):
        return list(mine) == list(other) and all(same(mine[key], other[key]) for key in other)
    if isinstance(other, list | tuple):
        return type(mine) is type(other) and len(mine) == len(other) and all(map(same, mine, other))
    if isinstance(other, memoryview):
        return bool(mine == bytes(other))
    return type(mine) is type(other) and (mine == other or repr(mine) == repr(other) == "nan")


def assert_same(mine: list[Any], other: list[Any]) -> None:
    assert len(mine) == len(other)
    for one, two in zip(mine, other, strict=True):
        assert same(one, two if isinstance(two, dict) else {"value": two}), (one, two)


def tree(number: int) -> dict[str, Any]:
    return {
        "number": number,
        "text": f"text {number}",
        "truth": number % 2 == 0,
        "float": number / 3,
        "flat": np.arange(number % 5 + 1, dtype=np.int32),
        "array": np.ones((2, number % 3 + 1), np.float16),
        "tensor": torch.ones(2, number % 3 + 1),
        "flat tensor": torch.arange(number % 4, dtype=torch.uint8),
        "nested": {"list": [1, 2.5, True, None], "pair": (b"x", {"deep": "y"})},
    }


@pytest.mark.parametrize("packing", PACKINGS, ids=str)
@pytest.mark.parametrize(
    "item",
    [
        tree,
        lambda number: {"n": number, "rows": [{"x": 1, "y": "z"}] * number, "texts": ["a"] * number},
        lambda number: number,
        lambda number: (number, "x", [1.5]),
        lambda number: [np.arange(number), {"a": "b"}],
    ],
    ids=["tree", "nested rows", "number", "tuple", "list"],
)
def test_each_tree_and_packing_gives_what_litdata_reads(tmp_path: Path, item: Any, packing: dict[str, str]) -> None:
    items = [item(number) for number in range(40)]
    folder = peers.write_litdata(tmp_path / "lit", items, **packing)
    corpus = iostack.open_corpus(folder)
    assert (len(corpus), corpus.ignored) == (40, ())
    mine = ours(folder)  # first: litData's dataset decompresses beside the chunks
    # litData 0.2.76 says that it packed such tuples inside of the chunk, and cannot read them again.
    unreadable = isinstance(items[0], tuple) and packing.get("compression_level", "batch") != "chunk" and packing
    expected = items if unreadable else theirs(folder)
    assert_same(mine, expected)


@settings(max_examples=20, deadline=None, phases=[Phase.generate])
@given(data=st.data())
def test_any_values_come_back_as_litdata_gives_them(data: st.DataObject) -> None:
    word = st.text(max_size=5)
    plain = st.none() | st.booleans() | INT64 | st.floats(allow_nan=False) | word
    record = st.fixed_dictionaries({"a": plain, "b": plain})
    lists = (
        st.lists(kind, max_size=4) for kind in (word, INT64, st.floats(allow_nan=False), st.booleans(), record, plain)
    )
    nested = st.one_of(*lists)
    items = [
        {
            "int": data.draw(INT64),
            "float": data.draw(st.floats()),
            "bool": data.draw(st.booleans()),
            "str": data.draw(
                st.text(max_size=20).filter(lambda text: "\0" not in text and not Path(text or "?").exists())
            ),
            "bytes": data.draw(st.binary(max_size=20)),
            "array": np.array(data.draw(st.lists(INT64, max_size=5)), np.int64),
            "json": data.draw(nested),
        }
        for _ in range(4)
    ]
    with tempfile.TemporaryDirectory() as name:
        folder = peers.write_litdata(Path(name) / "lit", items, **data.draw(st.sampled_from(PACKINGS)))
        mine = ours(folder, cache_dir=Path(name) / "cache")
        assert_same(mine, theirs(folder))


def test_stored_images_stay_their_bytes_and_raw_ones_are_images(tmp_path: Path) -> None:
    image_module = pytest.importorskip("PIL.Image")
    picture = image_module.fromarray(np.arange(60, dtype=np.uint8).reshape(4, 5, 3))
    picture.save(tmp_path / "a.jpg")
    items = [{"raw": picture, "jpeg": image_module.open(tmp_path / "a.jpg")}]
    [sample] = ours(peers.write_litdata(tmp_path / "lit", items))
    assert sample["raw"].tobytes() == picture.tobytes()
    assert sample["jpeg"] == (tmp_path / "a.jpg").read_bytes()


def test_what_optimize_writes_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "lit"
    litdata.optimize(
        json.loads, [json.dumps({"n": number}) for number in range(20)], str(folder), chunk_size=7, num_workers=1
    )
    assert ours(folder) == [{"n": number} for number in range(20)]


@pytest.mark.parametrize("packing", [*PACKINGS[:1], PACKINGS[2]], ids=str)
@pytest.mark.parametrize("kind", ["tensor int64", "tensor uint16", "numpy int32", "numpy uint16"])
def test_token_chunks_are_one_stream_of_the_tokens_that_were_written(
    tmp_path: Path, kind: str, packing: dict[str, str]
) -> None:
    library, dtype = kind.split()
    documents = [np.arange(number, number + number % 50).astype(dtype) for number in range(1, 300)]
    items = [torch.from_numpy(each) if library == "tensor" else each for each in documents]
    loader = litdata.TokensLoader()
    folder = peers.write_litdata(tmp_path / "lit", items, item_loader=loader, **packing)
    corpus = iostack.open_corpus(folder)
    assert corpus.holds_tokens
    assert (len(corpus), corpus.manifest.total_tokens) == (299, sum(map(len, documents)))
    for number in (0, 1, 50, 298):
        assert np.array_equal(corpus[number]["tokens"], documents[number])
    stream = [corpus.open_shard(shard).tokens for shard in range(corpus.num_shards)]
    assert {each.dtype for each in stream} == {np.dtype(dtype)}
    assert np.array_equal(np.concatenate(stream), np.concatenate(documents))
    blocks = theirs(folder, item_loader=litdata.TokensLoader(block_size=16))
    cut = [each[at : at + 16] for each in stream for at in range(0, len(each) - 15, 16)]
    assert all(np.array_equal(one, np.asarray(two)) for one, two in zip(cut, blocks, strict=True))
    batch = next(iter(iostack.Loader(corpus, batch_size=4, seq_len=16, lanes=4)))
    assert batch["tokens"].shape == (4, 17)
    assert ((batch["tokens"][:, 1:] - batch["tokens"][:, :-1]) <= 50).all()


def test_counts_come_from_the_index_alone(tmp_path: Path) -> None:
    folder = peers.write_litdata(tmp_path / "lit", list(range(500)))
    for path in folder.glob("*.bin"):
        path.write_bytes(bytes(path.stat().st_size))
    assert len(iostack.open_corpus(folder)) == 500


def test_pickles_are_refused_until_their_column_is_named(tmp_path: Path) -> None:
    folder = peers.write_litdata(tmp_path / "lit", [{"a": {1, 2}, "b": 1}])
    with pytest.raises(ShardError, match="the column 'a' is pickled") as refused:
        ours(folder)
    assert "-o allow_pickle=a" in refused.value.hint
    assert ours(folder, allow_pickle="a") == [{"a": {1, 2}, "b": 1}]


def test_a_chunk_that_is_gone_not_named_or_without_its_index_is_told(tmp_path: Path) -> None:
    folder = peers.write_litdata(tmp_path / "lit", list(range(500)))
    shutil.copy(folder / "chunk-0-0.bin", folder / "chunk-9-0.bin")
    with pytest.raises(ShardError, match=r"index\.json does not name it"):
        iostack.open_corpus(folder)
    (folder / "chunk-9-0.bin").unlink()
    (folder / "chunk-0-1.bin").unlink()
    with pytest.raises(ShardError, match=r"^/\S+/lit/index.json names chunk-0-1\.bin, which is not there"):
        build_manifest(folder)
    (folder / "index.json").unlink()
    with pytest.raises(FormatError, match=r"chunk-0-0\.bin has no index\.json beside it"):
        iostack.open_corpus(folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"encryption": {"algorithm": "fernet"}}, "are encrypted"),
        ({"item_loader": "ParquetLoader"}, "chunks of litData's ParquetLoader are not read"),
        ({"compression": "lz4"}, "compressed as 'lz4'"),
    ],
)
def test_what_is_not_read_is_refused_in_a_line(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    folder = peers.write_litdata(tmp_path / "lit", [1, 2])
    index = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps(index | {"config": index["config"] | change}))
    with pytest.raises(FormatError, match=said):
        iostack.open_corpus(folder)


_DEEP = '[1, {"type": "builtins.list", "context": "null", "children_spec": [' * 1 + "[" * 50_000
HOSTILE = [
    {"config": {"data_format": ["nonsense"]}},
    {"config": {"data_format": ["no_header_numpy:14"]}},
    {"config": {"data_format": ["int", "int", "int"]}},
    {"config": {"data_format": [7]}},
    {"config": {"data_format": None}},
    {"config": {"data_spec": None}},
    {"config": {"data_spec": "[]"}},
    {"config": {"data_spec": "[2, {}]"}},
    {"config": {"data_spec": _DEEP}},
    {"config": {"data_spec": '[1, {"type": "os.system", "context": "null", "children_spec": []}]'}},
    {"config": {"data_spec": '[1, {"type": "builtins.dict", "context": "[\\"a\\"]", "children_spec": []}]'}},
    {"config": {"item_loader": "TokensLoader"}},
    {"config": {"item_loader": "TokensLoader", "data_format": ["no_header_tensor:1"]}},
    {"config": {"item_loader": "TokensLoader", "data_format": ["no_header_tensor:99"]}},
    {"config": {"item_loader": "TokensLoader", "data_format": ["no_header_tensor:18"]}},
    {"config": 7},
    {"chunks": 7},
    {"chunks": [7]},
    {"chunks": [{"filename": "../chunk-0-0.bin"}]},
    {"chunks": [{"filename": "/chunk-0-0.bin"}]},
    {"chunks": [{"filename": 5}]},
    {"chunks": [{"chunk_size": 10**30}]},
    {"chunks": [{"chunk_size": -1}]},
    {"chunks": [{"chunk_bytes": "7"}]},
    {"chunks": [{"chunk_size": 3}]},
]


@pytest.mark.parametrize("change", HOSTILE, ids=lambda change: json.dumps(change)[:60])
def test_a_hostile_index_is_our_error(tmp_path: Path, change: Any) -> None:
    folder = peers.write_litdata(tmp_path / "lit", [(1, "x")] * 2)
    index = json.loads((folder / "index.json").read_text())
    for key, value in change.items():
        if isinstance(value, dict):
            index[key] |= value
        elif isinstance(value, list) and isinstance(value[0], dict):
            index[key][0] |= value[0]
        else:
            index[key] = value
    (folder / "index.json").write_text(json.dumps(index))
    with pytest.raises(CorpusError):
        ours(folder)


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("fuzz")
    nested = [{"n": 1, "rows": [{"x": 1, "y": "z"}] * 2}] * 3
    written = [
        peers.write_litdata(folder / str(number), [tree(i) for i in range(3)], **PACKINGS[number])
        for number in (0, 1, 3)
    ]
    tokens = peers.write_litdata(folder / "tokens", [torch.arange(9)] * 3, item_loader=litdata.TokensLoader())
    return [*written, tokens, peers.write_litdata(folder / "rows", nested)]


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_damaged_chunks_give_only_our_errors(originals: list[Path], data: st.DataObject) -> None:
    original = data.draw(st.sampled_from(originals))
    damaged = bytearray((original / "chunk-0-0.bin").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(
            st.integers(0, len(damaged) - 1) | st.integers(0, 60) | st.integers(len(damaged) - 40, len(damaged) - 1)
        )
        damaged[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.just(len(damaged)) | st.integers(0, len(damaged)))
    index = json.loads((original / "index.json").read_text())
    index["chunks"][0]["chunk_bytes"] = cut
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "index.json").write_text(json.dumps(index))
        (folder / "chunk-0-0.bin").write_bytes(damaged[:cut])
        tracemalloc.start()
        try:
            for sample in ours(folder, cache_dir=folder / "cache"):
                assert isinstance(sample, dict | SampleError)
        except ShardError:
            pass
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 40 << 20
