"""What the source says of the types of its columns, for the layout of a target.

Types are Arrow's. They hold what values cannot tell: a map whose rows are empty, the scale of decimals, a time that is
null in every row that was looked at.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from iostack.corpus.contracts import Sample, ShardReader
from iostack.errors import UsageError

Types = Mapping[str, Any]
"""pyarrow types by column; a column that the source says nothing of, or a transform has changed, is not there."""

_DECIMAL_DIGITS = {128: 38, 256: 76}


@runtime_checkable
class TypedReader(ShardReader, Protocol):
    """A shard that says the types of its columns, whatever their values are."""

    def types(self) -> Types:
        """Return the type that the values of each column have."""
        ...


class KnownTypes:
    """The types of the columns that come out of a source as they went in, told by some of its shards and samples."""

    def __init__(self) -> None:
        self._types: dict[str, Any] = {}
        self._seen: set[str] = set()
        self._changed: set[str] = set()

    def add_shard(self, reader: ShardReader) -> None:
        """Take the types of one shard; where two differ in more than size, values must tell."""
        for column, kind in (reader.types() if isinstance(reader, TypedReader) else {}).items():
            wide = widest(kind)
            if str(known := self._types.setdefault(column, wide)) == "null":
                self._types[column] = wide
            elif known != wide and str(wide) != "null":
                self._changed.add(column)

    def add_sample(self, before: Sample, after: Sample) -> None:
        """Look at one sample before and after the transforms; values that are no longer the same objects have no type."""
        self._seen.update(after)
        self._changed.update(column for column, value in after.items() if value is not before.get(column))

    def known(self) -> Types:
        """Return what is known by now."""
        told = self._seen - self._changed
        return {column: kind for column, kind in self._types.items() if column in told and str(kind) != "null"}


def widest(kind: Any) -> Any:
    """Return the largest type of a kind: the shards of a corpus may have integers, floats and decimals of other sizes."""
    import pyarrow as pa

    types = pa.types
    if types.is_integer(kind):
        return pa.uint64() if types.is_uint64(kind) else pa.int64()
    if types.is_floating(kind):
        return pa.float64()
    if types.is_large_string(kind):
        return pa.string()
    if types.is_large_binary(kind) or types.is_fixed_size_binary(kind):
        return pa.binary()
    if types.is_decimal256(kind):
        return pa.decimal256(_DECIMAL_DIGITS[256], kind.scale)
    if types.is_decimal(kind):
        return pa.decimal128(_DECIMAL_DIGITS[128], kind.scale)
    if types.is_timestamp(kind):
        return pa.timestamp("us", kind.tz)
    if types.is_time(kind):
        return pa.time64("us")
    if types.is_date(kind):
        return pa.date32()
    if types.is_duration(kind):
        return pa.duration("us")
    return _widest_nested(kind)


def _widest_nested(kind: Any) -> Any:
    import pyarrow as pa

    if _is_list(kind):
        return pa.list_(widest(kind.value_type))
    if pa.types.is_map(kind):
        return pa.map_(widest(kind.key_type), widest(kind.item_type))
    if pa.types.is_struct(kind):
        return pa.struct([pa.field(field.name, widest(field.type)) for field in _fields(kind)])
    return kind


def refuse_what_json_lacks(types: Types, *, format: str, besides: tuple[str, ...] = ()) -> None:
    """Refuse columns whose values JSON has no word for; whole columns of the kinds ``besides`` are stored in other ways.

    Raises:
        UsageError: names the column and the type.
    """
    for column, kind in types.items():
        if str(kind).partition("(")[0].partition("[")[0] in besides:
            continue
        if lacking := _lacks(kind):
            whole = "" if lacking == str(kind) else f" in {kind}"
            raise UsageError(
                f"column {column!r} holds {lacking}{whole}, which cannot be written as {format}",
                hint="leave it out with --columns, or make it text or numbers by --transform",
            )


def _lacks(kind: Any) -> str:
    """Return the first type in ``kind`` that JSON does not have, or nothing."""
    import pyarrow as pa

    types = pa.types
    if _is_list(kind):
        return _lacks(kind.value_type)
    if types.is_map(kind):
        return _lacks(kind.key_type) or _lacks(kind.item_type)
    if types.is_struct(kind):
        return next((lacking for field in _fields(kind) if (lacking := _lacks(field.type))), "")
    has = types.is_integer(kind) or types.is_floating(kind) or types.is_string(kind) or types.is_boolean(kind)
    return "" if has or types.is_null(kind) else str(kind)


def _is_list(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _fields(struct: Any) -> list[Any]:
    return [struct.field(number) for number in range(struct.num_fields)]
