"""Tables of every kind of column, drawn by hypothesis."""

from __future__ import annotations

import datetime
import decimal
from typing import Any

import pyarrow as pa
from hypothesis import strategies as st

FLAT = {
    "text": pa.string(),
    "large": pa.large_string(),
    "blob": pa.binary(),
    "number": pa.int64(),
    "small": pa.uint8(),
    "unsigned": pa.uint64(),
    "single": pa.float32(),
    "double": pa.float64(),
    "flag": pa.bool_(),
}
NESTED = {
    "list": pa.list_(pa.int32()),
    "strings": pa.list_(pa.string()),
    "fixed": pa.list_(pa.float64(), 2),
    "struct": pa.struct([("a", pa.int16()), ("b", pa.list_(pa.string()))]),
    "map": pa.map_(pa.string(), pa.int64()),
    "deep": pa.list_(pa.struct([("x", pa.list_(pa.list_(pa.bool_())))])),
    "time": pa.timestamp("us", "UTC"),
    "day": pa.date32(),
    "money": pa.decimal128(12, 3),
    "word": pa.dictionary(pa.int32(), pa.string()),
    "wide": pa.binary(3),
}


def _values(type: pa.DataType) -> st.SearchStrategy[Any]:
    types = pa.types
    if types.is_dictionary(type) or types.is_string(type) or types.is_large_string(type):
        made: st.SearchStrategy[Any] = st.text(max_size=15)
    elif types.is_fixed_size_binary(type):
        made = st.binary(min_size=type.byte_width, max_size=type.byte_width)
    elif types.is_binary(type):
        made = st.binary(max_size=15)
    elif types.is_boolean(type):
        made = st.booleans()
    elif types.is_integer(type):
        low = 0 if types.is_unsigned_integer(type) else -(2 ** (type.bit_width - 1))
        made = st.integers(low, 2 ** (type.bit_width - 1) - 1)
    elif types.is_floating(type):
        made = st.floats(width=type.bit_width, allow_nan=False)
    elif types.is_timestamp(type):
        made = st.datetimes(timezones=st.just(datetime.UTC))
    elif types.is_date(type):
        made = st.dates()
    elif types.is_decimal(type):
        made = st.integers(-(10**9), 10**9).map(lambda number: decimal.Decimal(number).scaleb(-3))
    elif types.is_fixed_size_list(type):
        made = st.lists(_values(type.value_type), min_size=type.list_size, max_size=type.list_size)
    elif types.is_map(type):
        made = st.dictionaries(st.text(max_size=3), _values(type.item_type), max_size=3).map(
            lambda it: list(it.items())
        )
    elif types.is_struct(type):
        fields = [type.field(number) for number in range(type.num_fields)]
        made = st.fixed_dictionaries({field.name: _values(field.type) for field in fields})
    else:
        made = st.lists(_values(type.value_type), max_size=3)
    return st.none() | made


@st.composite
def tables(draw: st.DrawFn) -> pa.Table:
    """A table of up to 40 rows of some columns of every kind, and nulls among them."""
    kinds = FLAT | NESTED
    names = draw(st.lists(st.sampled_from(sorted(kinds)), unique=True, min_size=1, max_size=4))
    num_rows = draw(st.integers(0, 40))
    columns = [
        pa.array(draw(st.lists(_values(kinds[name]), min_size=num_rows, max_size=num_rows)), kinds[name])
        for name in names
    ]
    return pa.table(dict(zip(names, columns)))


def without_nulls(table: pa.Table) -> pa.Table:
    """The table without the rows in which a column is null: such columns become arrays."""
    return table.filter(pa.array([None not in row.values() for row in table.to_pylist()], pa.bool_()))
