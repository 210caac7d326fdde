"""Arrow types as Python sees them: what a row's value becomes, whichever way its column is encoded."""

from __future__ import annotations

from typing import Any

_NANOSECONDS = "ns"


def plain_type(type: Any) -> Any:
    """Return the type whose values are the same, without dictionaries, run lengths, views, extensions and nanoseconds.

    Extensions become their storage, so that values do not depend on which libraries are imported. Python's times have
    microseconds: the rest of nanoseconds is cut off, since what keeps it is pandas alone.
    """
    import pyarrow as pa

    types = pa.types
    if isinstance(type, pa.BaseExtensionType):
        return plain_type(type.storage_type)
    if types.is_dictionary(type) or types.is_run_end_encoded(type):
        return plain_type(type.value_type)
    if types.is_string_view(type):
        return pa.large_string()
    if types.is_binary_view(type):
        return pa.large_binary()
    if types.is_timestamp(type) and type.unit == _NANOSECONDS:
        return pa.timestamp("us", type.tz)
    if types.is_time64(type) and type.unit == _NANOSECONDS:
        return pa.time64("us")
    if types.is_duration(type) and type.unit == _NANOSECONDS:
        return pa.duration("us")
    return _plain_nested(type)


def _plain_nested(type: Any) -> Any:
    import pyarrow as pa

    types = pa.types
    if types.is_list(type):
        return pa.list_(_plain_field(type.value_field))
    if types.is_large_list(type) or types.is_large_list_view(type):
        return pa.large_list(_plain_field(type.value_field))
    if types.is_list_view(type):
        return pa.list_(_plain_field(type.value_field))
    if types.is_fixed_size_list(type):
        return pa.list_(_plain_field(type.value_field), type.list_size)
    if types.is_map(type):
        return pa.map_(_plain_field(type.key_field), _plain_field(type.item_field), type.keys_sorted)
    if types.is_struct(type):
        return pa.struct([_plain_field(type.field(number)) for number in range(type.num_fields)])
    return type


def _plain_field(field: Any) -> Any:
    import pyarrow as pa

    return pa.field(field.name, plain_type(field.type), field.nullable)


def plain_array(array: Any) -> Any:
    """Return an array, of which only what it spans is looked at, in its ``plain_type``."""
    import pyarrow as pa

    type = plain_type(array.type)
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    if pa.types.is_run_end_encoded(array.type):
        import pyarrow.compute

        array = pa.compute.run_end_decode(array)
    if array.type == type:
        return array
    if "list_view<" in str(array.type):
        # The cast of pyarrow 26 takes the offsets of views, one for each list, for those of lists, one more: it reads beyond them.
        return pa.array(array.to_pylist(), type)
    return array.cast(type, safe=False)


def kind_of(type: Any) -> str:
    """Return the name of a type for comparing shards: integers of all sizes are one kind, so are floats and strings."""
    import pyarrow as pa

    types = pa.types
    plain = plain_type(type)
    if types.is_integer(plain):
        return "int"
    if types.is_floating(plain):
        return "float"
    if types.is_string(plain) or types.is_large_string(plain):
        return "string"
    if types.is_binary(plain) or types.is_large_binary(plain) or types.is_fixed_size_binary(plain):
        return "binary"
    if types.is_decimal(plain):
        return "decimal"
    if types.is_timestamp(plain):
        return "timestamp" if plain.tz is None else "timestamp with a time zone"
    if types.is_list(plain) or types.is_large_list(plain) or types.is_fixed_size_list(plain):
        return f"list<{kind_of(plain.value_type)}>"
    if types.is_struct(plain):
        fields = (plain.field(number) for number in range(plain.num_fields))
        return f"struct<{', '.join(f'{field.name}: {kind_of(field.type)}' for field in fields)}>"
    if types.is_map(plain):
        return f"map<{kind_of(plain.key_type)}, {kind_of(plain.item_type)}>"
    return str(plain)
