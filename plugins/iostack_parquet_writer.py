"""Writer "parquet": tables through pyarrow, in row groups of some 16 MiB, compressed with zstd."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from iostack import hookimpl
from iostack.corpus.contracts import Sample
from iostack.errors import SampleError, UsageError
from iostack.prepare.contracts import Layout, Writer
from iostack.prepare.types import Types
from iostack.suggest import shortened

_GROUP_BYTES = 16 << 20
_GROUP_ROWS = 64 << 10
_ZSTD_LEVEL = 3


@hookimpl
def iostack_writers() -> Mapping[str, Callable[..., Writer]]:
    return {"parquet": ParquetWriter}


class ParquetWriter(Writer):
    """Files ``part-NNNNNN.parquet``, all of one schema, which is that of the first samples."""

    format = "parquet"

    def __init__(self) -> None:
        self.identity: Mapping[str, Any] = {}

    def layout(self, samples: Sequence[Sample], types: Types) -> Layout:
        import pyarrow as pa

        fields = []
        for name in dict.fromkeys(name for sample in samples for name in sample):
            values = [_plain(sample.get(name)) for sample in samples]
            try:
                field = pa.field(name, pa.array(values, types.get(name)).type)
                with _table(pa.BufferOutputStream(), pa.schema([field])):
                    pass  # Parquet lacks some types of Arrow's
            except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
                held = ", ".join(sorted({type(value).__name__ for value in values}))
                raise UsageError(
                    f"column {name!r} holds {types.get(name, held)}, which cannot be one column of Parquet: {_first_line(error)}",
                    hint="leave it out with --columns, or make it one type by --transform",
                ) from error
            fields.append(field)
        if not fields:
            raise UsageError(
                "samples without columns cannot be rows of Parquet", hint="check the source: iostack inspect URI"
            )
        return {"schema": pa.schema(fields).serialize().to_pybytes().hex()}

    def names(self, number: int) -> Sequence[str]:
        return [f"part-{number:06}.parquet"]

    def open(self, folder: Path, number: int, layout: Layout) -> TableSink:
        import pyarrow as pa

        schema = pa.ipc.read_schema(pa.py_buffer(bytes.fromhex(layout["schema"])))
        return TableSink(folder / self.names(number)[0], schema)


class TableSink:
    """Collects batches until they make a row group."""

    def __init__(self, file: Path, schema: Any) -> None:
        self._schema = schema
        self._checked = [field for field in schema if "struct<" in str(field.type) or "timestamp[" in str(field.type)]
        self._file = _table(str(file), schema)
        self._batches: list[Any] = []

    def write(self, samples: Sequence[Sample], rows: Sequence[int]) -> Sequence[Sample | Exception]:
        import pyarrow as pa

        try:
            self._append(samples)
            return samples
        except (SampleError, pa.ArrowException, TypeError, ValueError, OverflowError):
            return [self._append_one(sample) for sample in samples]

    def _append_one(self, sample: Sample) -> Sample | Exception:
        import pyarrow as pa

        for name, value in sample.items():
            try:
                pa.array([_plain(value)], self._type_of(name))
                _refuse_what_would_change(value, self._type_of(name), name)
            except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
                kind = self._type_of(name)
                return SampleError(
                    f"column {name!r} holds {type(value).__name__} where other samples hold {kind}: {_first_line(error)}"
                )
            except SampleError as error:
                return error
        self._append([sample])
        return sample

    def _append(self, samples: Sequence[Sample]) -> None:
        import pyarrow as pa

        if not samples:
            return
        for sample in samples:
            for name in sample.keys() - set(self._schema.names):
                self._type_of(name)
            for field in self._checked:
                _refuse_what_would_change(sample.get(field.name), field.type, field.name)
        columns = [
            pa.array([_plain(sample.get(field.name)) for sample in samples], field.type) for field in self._schema
        ]
        self._batches.append(pa.record_batch(columns, schema=self._schema))
        if (
            sum(batch.nbytes for batch in self._batches) >= _GROUP_BYTES
            or sum(batch.num_rows for batch in self._batches) >= _GROUP_ROWS
        ):
            self._flush()

    def _type_of(self, name: str) -> Any:
        if (at := self._schema.get_field_index(name)) < 0:
            known = shortened(self._schema.names)
            raise SampleError(f"the first samples have no column {name!r}; they have {known}: choose with --columns")
        return self._schema.field(at).type

    def _flush(self) -> None:
        import pyarrow as pa

        table = pa.Table.from_batches(self._batches, self._schema)
        self._batches = []
        self._file.write_table(table, row_group_size=max(1, table.num_rows))

    def close(self) -> None:
        try:
            if self._batches:
                self._flush()
        finally:
            self._file.close()


def _table(sink: Any, schema: Any) -> Any:
    import pyarrow.parquet as pq

    return pq.ParquetWriter(sink, schema, compression="zstd", compression_level=_ZSTD_LEVEL)


def _refuse_what_would_change(value: Any, kind: Any, name: str) -> None:
    """Refuse what pyarrow would drop, fields that a struct does not have, or turn into another: times of other zones."""
    import pyarrow as pa

    if isinstance(value, dict) and pa.types.is_struct(kind):
        for key, inner in value.items():
            if (at := kind.get_field_index(key)) < 0:
                raise SampleError(f"column {name!r}: the first samples have no field {key!r} in it; they have {kind}")
            _refuse_what_would_change(inner, kind.field(at).type, name)
    elif isinstance(value, list) and pa.types.is_map(kind):
        for key, item in value:
            _refuse_what_would_change(key, kind.key_type, name)
            _refuse_what_would_change(item, kind.item_type, name)
    elif isinstance(value, list | tuple) and pa.types.is_list(kind):
        for inner in value:
            _refuse_what_would_change(inner, kind.value_type, name)
    elif isinstance(value, datetime) and pa.types.is_timestamp(kind):
        _refuse_another_zone(value, kind, name)


def _refuse_another_zone(value: datetime, kind: Any, name: str) -> None:
    import pyarrow as pa

    if value.tzinfo is None and kind.tz is None:
        return
    back = pa.array([value], kind)[0].as_py()
    if str(back) != str(value):
        raise SampleError(f"column {name!r} holds the time {value}, which its type {kind} would give back as {back}")


def _plain(value: Any) -> Any:
    """Return arrays of more than one dimension as lists, which pyarrow wants."""
    return value.tolist() if getattr(value, "ndim", 1) > 1 else value


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
