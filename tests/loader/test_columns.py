"""Rows read as columns: the batches are those that are made sample by sample, in every respect.

A transform that changes nothing makes a loader read samples: that is what the columns are compared with.
"""

from __future__ import annotations

import json
import mmap
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tables import tables, without_nulls

import iostack
from iostack.corpus.arrow_reader import ArrowReader
from iostack.corpus.contracts import Sample, Slices
from iostack.corpus.index import build_manifest
from iostack.corpus.slices import gathered
from iostack.errors import PluginError, SubstitutionError
from iostack.loader.order.planning import Source
from iostack.testing import check_format
from iostack.testing.comparing import same


def as_it_is(sample: Sample) -> Sample:
    return sample


def _write(folder: Path, *shards: pa.Table) -> iostack.Corpus:
    folder.mkdir(parents=True, exist_ok=True)
    for number, table in enumerate(shards):
        with pa.ipc.new_file(str(folder / f"{number}.arrow"), table.schema) as writer:
            writer.write_table(table, max_chunksize=7)
    return iostack.open_corpus(folder, cache_dir=folder / ".cache")


def _batches(corpus: Any, **options: Any) -> list[dict[str, Any]]:
    with iostack.Loader(
        corpus, **{"batch_size": 6, "epochs": 1, "rank": 0, "ranks": 1, "threads": 2, **options}
    ) as loader:
        return list(loader)


def _assert_equal(corpus: Any, **options: Any) -> list[dict[str, Any]]:
    """Assert that columns give the batches of samples, and return these."""
    found, expected = _batches(corpus, **options), _batches(corpus, transforms=[as_it_is], **options)
    assert len(found) == len(expected)
    for batch, wanted in zip(found, expected, strict=True):
        assert same(batch, wanted), f"{batch} was expected to be {wanted}"
    return found


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How often a shard was asked for columns, and for samples."""
    counts = {"read": 0, "read_columns": 0}
    for name in counts:
        whole = getattr(ArrowReader, name)

        def counted(self: ArrowReader, rows: Any, name: str = name, whole: Any = whole) -> Any:
            counts[name] += 1
            return whole(self, rows)

        monkeypatch.setattr(ArrowReader, name, counted)
    return counts


@settings(max_examples=40, deadline=None)
@given(table=tables(), is_whole=st.booleans(), batch_size=st.integers(1, 9), cut=st.integers(0, 40))
def test_batches_of_every_kind_of_column_are_those_of_samples(
    table: pa.Table, is_whole: bool, batch_size: int, cut: int
) -> None:
    if is_whole:
        table = without_nulls(table)
    if not table.num_rows:
        return
    with tempfile.TemporaryDirectory() as name:
        corpus = _write(Path(name), table.slice(0, cut), table.slice(cut), table)
        _assert_equal(corpus, batch_size=batch_size, epochs=2, window_bytes=100)
        check_format(name)


def test_a_shard_that_is_read_as_columns_is_never_read_as_samples(tmp_path: Path, reads: Mapping[str, int]) -> None:
    table = pa.table({"text": [f"text {number}" * (number % 4) for number in range(50)], "n": range(50)})
    batches = _batches(_write(tmp_path, table, table.slice(0, 9)))
    assert sorted(n for batch in batches for n in batch["n"][batch["valid"]].tolist()) == sorted(
        [*range(50), *range(9)]
    )
    assert reads["read_columns"] > 0
    assert reads["read"] == 0


def test_rows_of_integers_beyond_64_bits_signed_are_lists_in_their_own_batches_alone(tmp_path: Path) -> None:
    numbers = pa.array([2**63 + 5 if number == 17 else number for number in range(40)], pa.uint64())
    batches = _assert_equal(_write(tmp_path, pa.table({"n": numbers})))
    assert [isinstance(batch["n"], list) for batch in batches].count(True) == 1


def test_a_bad_value_is_substituted_and_reported_as_among_samples(tmp_path: Path) -> None:
    texts = [b"\xff\xfe" * 10 if number in (3, 30) else f"text {number}".encode() * 3 for number in range(40)]
    good = pa.array([b"good"] * len(texts), pa.binary())
    for shard, column in enumerate((pa.array(texts, pa.binary()), good)):
        offsets, data = column.buffers()[1:]
        column = pa.StringArray.from_buffers(len(column), offsets, data)
        with pa.ipc.new_file(str(tmp_path / f"{shard}.arrow"), pa.schema({"text": pa.string()})) as writer:
            writer.write_batch(pa.record_batch([column], ["text"]))
    corpus = iostack.open_corpus(tmp_path)
    found = _assert_equal(corpus)
    assert all(isinstance(text, str) for batch in found for text in batch["text"])
    reported = []
    for transforms in ([], [as_it_is]):
        with iostack.Loader(corpus, batch_size=6, epochs=1, rank=0, ranks=1, transforms=transforms) as loader:
            list(loader)
            reported.append(loader.bad_samples.count)
    assert reported == [2, 2]


def test_a_moment_that_python_has_no_value_for_is_a_bad_sample(tmp_path: Path) -> None:
    moments = pa.array([0, 2**62, 5, 6, 7, 8, 9], pa.timestamp("s"))
    _assert_equal(_write(tmp_path, pa.table({"at": moments})), batch_size=4)


def test_a_time_zone_that_is_not_known_here_makes_bad_samples(tmp_path: Path) -> None:
    moments = pa.array(range(20), pa.timestamp("us", "Nowhere/Never"))
    with pytest.raises(SubstitutionError, match="Nowhere/Never"):
        _batches(_write(tmp_path, pa.table({"at": moments})))


@pytest.mark.parametrize(
    "second",
    [
        pa.table({"text": ["b"] * 20, "n": range(20)}),
        pa.table({"n": range(20), "text": ["b"] * 20}),
        pa.table({"text": ["b"] * 20, "n": [0.5] * 20}),
        pa.table({"text": [b"b"] * 20, "n": pa.array([None] * 20, pa.int64())}),
        pa.table({"text": ["b"] * 20, "other": [[1]] * 20}),
    ],
    ids=["alike", "in another order", "of other numbers", "of other types", "of other names"],
)
def test_sources_of_one_batch_are_mixed_as_their_samples_are(tmp_path: Path, second: pa.Table) -> None:
    first = pa.table({"text": ["a", "aa", None, "aaaa"] * 10, "n": range(40)})
    sources = [Source(_write(tmp_path / "a", first), 2, epochs=1), Source(_write(tmp_path / "b", second), 1, epochs=2)]
    _assert_equal(sources, epochs=None)


def test_columns_and_samples_stand_in_one_batch(tmp_path: Path) -> None:
    table = _write(tmp_path / "a", pa.table({"text": ["a"] * 20, "n": range(20)}))
    (tmp_path / "b").mkdir()
    lines = [json.dumps({"text": "b", "n": number, "more": [1]}) for number in range(20)]
    (tmp_path / "b" / "a.jsonl").write_text("\n".join(lines))
    build_manifest(tmp_path / "b")
    _assert_equal([Source(table, 1, epochs=2), Source(iostack.open_corpus(tmp_path / "b"), 1, epochs=1)], epochs=None)


def test_rows_that_filters_keep_come_as_columns(tmp_path: Path, reads: Mapping[str, int]) -> None:
    corpus = _write(tmp_path, *[pa.table({"n": range(first, first + 30)}) for first in (0, 30)])
    batches = _assert_equal(corpus, filters=[{"name": "where", "column": "n", "op": "<=", "value": 40}], lanes=2)
    assert sorted(n for batch in batches for n in batch["n"][batch["valid"]].tolist()) == list(range(41))
    assert reads["read_columns"] > 0


def test_shards_with_columns_in_another_order_give_the_batches_of_their_samples(tmp_path: Path) -> None:
    first = pa.table({"a": range(20), "b": ["x"] * 20})
    _assert_equal(_write(tmp_path, first, first.select(["b", "a"])))


@pytest.mark.parametrize("columns", [{"text": ["one"]}, {"text": ["x"] * 3, "n": np.zeros(2)}])
def test_a_reader_whose_columns_are_too_short_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, columns: Mapping[str, Sequence[Any]]
) -> None:
    monkeypatch.setattr(ArrowReader, "read_columns", lambda self, rows: columns)
    with pytest.raises(PluginError, match=r"the reader of .*0\.arrow failed on rows \[\d.* rows came"):
        _batches(_write(tmp_path, pa.table({"text": ["x"] * 20})))


def test_slices_reach_beyond_two_gibibytes(tmp_path: Path) -> None:
    places = {5: b"short", 2**30 - 3: b"across a border of buffers", 3 * 2**30 + 7: b"far away, and longer"}
    with (tmp_path / "sparse").open("wb") as file:
        for place, value in places.items():
            file.seek(place)
            file.write(value)
    with (tmp_path / "sparse").open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        starts = np.array(list(places))
        stops = starts + [len(value) for value in places.values()]
        assert gathered([Slices(mapped, starts, stops)], np.array([2, 0, 1])) == [
            places[at] for at in (3 * 2**30 + 7, 5, 2**30 - 3)
        ]


@pytest.mark.parametrize(("start", "stop"), [(-1, 4), (5, 4), (90, 101), (0, 2**31)])
def test_a_value_that_is_not_in_its_shard_is_never_looked_at(start: int, stop: int) -> None:
    inside = Slices(bytes(1000), np.array([0]), np.array([900]))
    with pytest.raises(ValueError, match="does not lie in its shard"):
        gathered([inside, Slices(bytes(100), np.array([0, start]), np.array([20, stop]))], np.arange(3))
