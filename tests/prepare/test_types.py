"""What the source says of types decides the target's: maps, decimals, times, nulls; what a target cannot hold is refused early."""

from __future__ import annotations

import datetime
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import conversions
import corpora
import peers
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

import iostack
from iostack.prepare.named import build_writer
from iostack.prepare.types import KnownTypes, widest

NOON = datetime.datetime(2024, 5, 6, 12, 30, 1, 7, tzinfo=datetime.UTC)
ROWS = 40
TYPED = {
    "map": (pa.map_(pa.string(), pa.int32()), [[], [("a", 1), ("b", None)]]),
    "maps": (pa.list_(pa.map_(pa.string(), pa.struct([("x", pa.float32())]))), [[], [[("k", {"x": 0.5})], []]]),
    "decimal": (pa.decimal128(12, 4), [Decimal("1.5000"), Decimal("-99999999.1234")]),
    "time": (pa.timestamp("us", "UTC"), [None, NOON]),
    "naive": (pa.timestamp("ms"), [NOON.replace(tzinfo=None, microsecond=7000), None]),
    "date": (pa.date32(), [NOON.date(), None]),
    "clock": (pa.time32("s"), [datetime.time(1, 2, 3), None]),
    "length": (pa.duration("s"), [datetime.timedelta(seconds=9), None]),
    "null": (pa.list_(pa.struct([("a", pa.string()), ("b", pa.binary())])), [None, None]),
    "big": (pa.uint64(), [1, 2**64 - 1]),
    "small": (pa.int8(), [-1, None]),
    "flag": (pa.bool_(), [True, None]),
}


def _write(folder: Path, *columns: str, rows: int = ROWS, other: int = -1) -> list[dict[str, Any]]:
    """Write the columns: every row holds the first value but the row ``other``, which holds the second."""
    folder.mkdir(parents=True, exist_ok=True)
    data = {name: [TYPED[name][1][0]] * rows for name in columns}
    for name in columns:
        data[name][other] = TYPED[name][1][1]
    schema = pa.schema([("n", pa.int32()), *((name, TYPED[name][0]) for name in columns)])
    table = pa.table({"n": range(rows)} | data, schema)
    pq.write_table(table, folder / "0.parquet")
    return table.to_pylist()


@pytest.mark.parametrize("column", TYPED)
def test_each_type_of_a_table_goes_to_parquet_as_it_is(tmp_path: Path, column: str) -> None:
    samples = _write(tmp_path / "in", column)
    conversions.prepare(tmp_path / "in", tmp_path / "out", "--to", "parquet", "--jobs", 1)
    written = pq.read_table(tmp_path / "out" / "part-000000.parquet")
    assert written.schema.field(column).type == widest(TYPED[column][0])
    assert written.to_pylist() == samples
    assert conversions.read_back(tmp_path / "out") == samples


def test_values_that_no_row_of_the_trial_has_fit_by_their_type(tmp_path: Path) -> None:
    samples = _write(tmp_path / "in", *TYPED, rows=9000, other=1100)  # between its places
    conversions.prepare(tmp_path / "in", tmp_path / "out", "--to", "parquet", "--jobs", 1)
    assert pq.read_table(tmp_path / "out" / "part-000000.parquet").to_pylist() == samples


@pytest.mark.parametrize("column", ["map", "maps", "small", "flag", "null"])
def test_what_json_holds_goes_to_mds_with_its_nulls(tmp_path: Path, column: str) -> None:
    if column == "null":
        samples: list[dict[str, Any]] = [{"n": n, "null": None if n % 2 else f"t{n}"} for n in range(ROWS)]
        corpora.write_jsonl(tmp_path / "in" / "a.jsonl", samples)
    else:
        samples = _write(tmp_path / "in", column)
    conversions.prepare(tmp_path / "in", tmp_path / "out", "--to", "mds", "--jobs", 1)
    as_json = [each | {column: json.loads(json.dumps(each[column]))} for each in samples]  # pairs are lists there
    assert peers.mosaic_samples(tmp_path / "out") == as_json


def test_nulls_that_come_late_say_what_to_do_and_a_filter_does_it(tmp_path: Path) -> None:
    samples: list[dict[str, Any]] = [{"n": n, "t": "x"} for n in range(9000)]
    samples[1100] = {"n": 1100, "t": None}  # between the places of the trial
    corpora.write_jsonl(tmp_path / "in" / "a.jsonl", samples)
    words = (tmp_path / "in", tmp_path / "out", "--to", "mds", "--jobs", 1)
    told = conversions.prepare(*words, code=1)
    assert (
        "a.jsonl row 1100: column 't' is null, where the first samples hold str: leave such rows out" in told["error"]
    )
    given = json.dumps({"name": "where", "column": "t", "op": "!=", "value": None})
    conversions.prepare(*words, "--overwrite", "--filter", given)
    assert conversions.read_back(tmp_path / "out") == [each for each in samples if each["n"] != 1100]


def test_columns_that_some_samples_lack_are_null_in_mds(tmp_path: Path) -> None:
    corpora.write_jsonl(tmp_path / "in" / "a.jsonl", [{"n": 1}, {"n": 2, "t": "x"}, {"t": "y", "n": 3}])
    conversions.prepare(tmp_path / "in", tmp_path / "out", "--to", "mds", "--jobs", 1)
    expected = [{"n": 1, "t": None}, {"n": 2, "t": "x"}, {"n": 3, "t": "y"}]
    assert peers.mosaic_samples(tmp_path / "out") == expected


def test_types_of_mosaicml_shards_are_those_of_their_encodings(tmp_path: Path) -> None:
    samples = [{"big": 1, "text": "a"}] * 9000
    samples[1100] = {"big": 2**64 - 1, "text": "b"}
    columns = {"big": "uint64", "text": "str"}
    with peers.streaming().MDSWriter(out=str(tmp_path / "in"), columns=columns) as writer:
        for sample in samples:
            writer.write(sample)
    conversions.prepare(tmp_path / "in", tmp_path / "out", "--to", "parquet", "--jobs", 1)
    written = pq.read_table(tmp_path / "out" / "part-000000.parquet")
    assert (written.schema.field("big").type, written.to_pylist()) == (pa.uint64(), samples)


def test_decimals_are_mosaicmls_own(tmp_path: Path) -> None:
    samples = _write(tmp_path / "in", "decimal")
    conversions.prepare(tmp_path / "in", tmp_path / "out", "--to", "mds", "--jobs", 1)
    assert peers.mosaic_samples(tmp_path / "out") == samples


@pytest.mark.parametrize("to", ["jsonl", "mds", "webdataset"])
@pytest.mark.parametrize(
    ("column", "held"),
    [
        ("time", "timestamp[us, tz=UTC]"),
        ("date", "date32[day]"),
        ("clock", "time64[us]"),
        ("length", "duration[us]"),
        ("null", "binary in list<"),
    ],
)
def test_types_that_a_target_lacks_are_refused_before_work_starts(
    tmp_path: Path, to: str, column: str, held: str
) -> None:
    _write(tmp_path / "in", column)
    told = conversions.prepare(tmp_path / "in", tmp_path / "out", "--to", to, "--jobs", 1, code=2)
    assert told["error"].startswith(f"column {column!r} holds {held}"), told
    assert "which cannot be written as " in told["error"]
    assert told["hint"] == "leave it out with --columns, or make it text or numbers by --transform"
    assert not (tmp_path / "out").exists()
    conversions.prepare(tmp_path / "in", tmp_path / "out", "--to", to, "--columns", "n", "--jobs", 1)
    assert len(conversions.read_back(tmp_path / "out")) == ROWS


def test_values_of_which_none_fits_a_tar_are_refused_where_no_type_is_known(tmp_path: Path) -> None:
    _write(tmp_path / "in", "date")
    changed = json.dumps({"name": "rename", "columns": {"date": "day"}})
    words = (tmp_path / "in", tmp_path / "out", "--to", "webdataset", "--jobs", 1, "--transform", changed)
    told = conversions.prepare(*words, code=2)
    assert (
        told["error"]
        == "column 'day' holds date, which cannot be written: Object of type date is not JSON serializable"
    )


def test_bytes_and_nulls_are_no_column_of_mds(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table({"x": [b"a", None]}), tmp_path / "in" / "a.parquet")
    told = conversions.prepare(tmp_path / "in", tmp_path / "out", "--to", "mds", "--jobs", 1, code=2)
    assert told["error"] == "column 'x' holds bytes and nulls, which cannot be one column of MDS"


def test_shards_whose_numbers_have_other_sizes_are_one_target(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number, kind in enumerate((pa.int8(), pa.int64())):
        table = pa.table({"x": pa.array([1, 2**40 if number else 3], kind), "f": pa.array([0.1, 0.2], pa.float64())})
        if not number:
            table = table.set_column(1, "f", pa.array([0.5, 0.25], pa.float32()))
        pq.write_table(table, tmp_path / "in" / f"{number}.parquet")
    conversions.prepare(tmp_path / "in", tmp_path / "out", "--to", "parquet", "--jobs", 1)
    assert [row["x"] for row in conversions.read_back(tmp_path / "out")] == [1, 3, 1, 2**40]
    assert [row["f"] for row in conversions.read_back(tmp_path / "out")] == [0.5, 0.25, 0.1, 0.2]


def test_shards_whose_decimals_have_other_scales_are_one_target(tmp_path: Path) -> None:
    for shard, number in enumerate(("1.25", "1.125")):
        (tmp_path / "in").mkdir(exist_ok=True)
        pq.write_table(pa.table({"price": [Decimal(number)] * ROWS}), tmp_path / "in" / f"{shard}.parquet")
    conversions.prepare(tmp_path / "in", tmp_path / "out", "--to", "parquet", "--jobs", 1)
    read = conversions.read_back(tmp_path / "out")
    assert [row["price"] for row in read] == [Decimal("1.25")] * ROWS + [Decimal("1.125")] * ROWS


def test_a_value_that_a_transform_made_tells_its_own_type(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    pq.write_table(
        pa.table({"x": [b"text"] * 3, "m": pa.array([[("a", 1)]] * 3, pa.map_(pa.string(), pa.int8()))}),
        tmp_path / "in" / "a.parquet",
    )
    decode = json.dumps({"name": "decode", "columns": {"x": "text"}})
    conversions.prepare(tmp_path / "in", tmp_path / "out", "--to", "parquet", "--jobs", 1, "--transform", decode)
    assert conversions.read_back(tmp_path / "out") == [{"x": "text", "m": [("a", 1)]}] * 3


def test_times_of_other_zones_are_bad_samples_not_turned_into_the_first(tmp_path: Path) -> None:
    writer = build_writer("parquet", {})
    there = NOON.astimezone(datetime.timezone(datetime.timedelta(hours=2)))
    sink = writer.open(tmp_path, 0, writer.layout([{"t": NOON, "u": [NOON.replace(tzinfo=None)]}], {}))
    samples = [{"t": NOON, "u": [None]}, {"t": there, "u": None}, {"t": None, "u": [NOON]}]
    good, *bad = sink.write(samples, range(3))
    sink.close()
    assert good == samples[0]
    assert [str(each).partition(" would give back as ")[::2] for each in bad] == [
        (f"column 't' holds the time {there}, which its type timestamp[us, tz=UTC]", str(NOON)),
        (f"column 'u' holds the time {NOON}, which its type timestamp[us]", str(NOON.replace(tzinfo=None))),
    ]
    assert pq.read_table(tmp_path / "part-000000.parquet").to_pylist() == [samples[0]]


@pytest.mark.parametrize("zone", ["UTC", "+00:00", "-00:00", "+02:00", "Etc/UTC", "Europe/Berlin"])
def test_a_zone_of_any_spelling_is_kept(tmp_path: Path, zone: str) -> None:
    (tmp_path / "in").mkdir()
    table = pa.table({"t": pa.array([NOON, None], pa.timestamp("us", zone))})
    pq.write_table(table, tmp_path / "in" / "a.parquet")
    conversions.prepare(tmp_path / "in", tmp_path / "out", "--to", "parquet", "--jobs", 1)
    assert pq.read_table(tmp_path / "out" / "part-000000.parquet").equals(table)


def test_fields_that_come_late_in_a_struct_are_bad_samples_not_dropped(tmp_path: Path) -> None:
    writer = build_writer("parquet", {})
    sink = writer.open(tmp_path, 0, writer.layout([{"x": {"a": [{"b": 1}]}}], {}))
    late = [{"x": {"a": [{"b": 2}]}}, {"x": {"a": [{"b": 2, "c": 3}]}}, {"x": {"a": None, "d": 1}}]
    good, *bad = sink.write(late, range(3))
    sink.close()
    assert good == late[0]
    assert [str(each).partition(" in it")[0] for each in bad] == [
        "column 'x': the first samples have no field 'c'",
        "column 'x': the first samples have no field 'd'",
    ]
    assert pq.read_table(tmp_path / "part-000000.parquet").to_pylist() == [late[0]]


KINDS = st.recursive(
    st.sampled_from([kind for kind, _ in TYPED.values()]),
    lambda inner: (
        inner.map(pa.list_)
        | inner.map(lambda kind: pa.struct([("f", kind)]))
        | inner.map(lambda kind: pa.map_(pa.string(), kind))
    ),
    max_leaves=4,
)


@given(kind=KINDS)
def test_the_widest_type_of_a_kind_is_its_own_widest(kind: Any) -> None:
    assert widest(widest(kind)) == widest(kind)


def test_a_type_is_known_of_what_comes_out_as_it_went_in(tmp_path: Path) -> None:
    _write(tmp_path / "in", "map", "date")
    with iostack.open_corpus(tmp_path / "in") as corpus:
        reader = corpus.open_shard(0)
        [sample] = reader.read([0])
        assert isinstance(sample, dict)
        known = KnownTypes()
        known.add_shard(reader)
        del (after := sample | {"date": "today", "new": 1})["n"]
        known.add_sample(sample, after)
    assert known.known() == {"map": pa.map_(pa.string(), pa.int64())}
