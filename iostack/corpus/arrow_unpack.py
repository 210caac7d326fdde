"""Write tables as plain Arrow: uncompressed, without dictionaries, in batches, so that rows can be mapped and sliced."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from iostack.cache.residency import Unpacking
from iostack.corpus.arrow_messages import Message, damaged, messages, read_schema, refuse_duplicates, start_of
from iostack.corpus.arrow_types import plain_array
from iostack.corpus.contracts import Columns
from iostack.corpus.mapping import Mapped, map_shard
from iostack.errors import IostackError, ShardError, UsageError
from iostack.suggest import closest

_RATIO_LIMIT = 1000
_UNQUESTIONED_BYTES = 256 << 20


def unpacking(
    made_by: str, columns: Columns, *, is_needed: Callable[[Path], bool], batches: Callable[..., Iterable[Any]]
) -> Unpacking:
    """Return how a format unpacks; ``batches(path, columns, name=)`` yields record batches of all or these columns.

    ``made_by`` is the format and its version; the columns are part of the identity of what is made.
    """
    unpack = partial(_unpack, columns=columns, batches=batches)
    return Unpacking(f"{made_by}:{'*' if columns is None else list(columns)}", is_needed, unpack)


def _unpack(source: Path, output: BinaryIO, name: str, *, columns: Columns, batches: Callable[..., Any]) -> None:
    import pyarrow as pa

    limit = UnpackedLimit(source.stat().st_size, name)
    writer = None
    with table_errors(name), pa.PythonFile(output, "w") as sink:
        for batch in batches(source, columns, name=name):
            plain = _plain(batch)
            limit.add(plain.get_total_buffer_size())
            if writer is None:
                writer = pa.ipc.new_stream(sink, plain.schema)
            writer.write_batch(plain)
        if writer is None:
            raise damaged(name, "it holds no batch, not even an empty one")
        writer.close()


def _plain(batch: Any) -> Any:
    import pyarrow as pa

    for column in batch.columns:
        _refuse_overlaps(column)
    columns = [plain_array(column) for column in batch.columns]
    # The metadata is left behind: it names extensions, and pandas' indexes.
    fields = [pa.field(name, column.type) for name, column in zip(batch.schema.names, columns, strict=True)]
    return pa.RecordBatch.from_arrays(columns, schema=pa.schema(fields))


def _refuse_overlaps(column: Any) -> None:
    """Refuse lists that are views of the same values: a few of them would become any number of values."""
    import pyarrow.compute

    if "list_view<" not in str(column.type):
        return
    is_plain_inside = "list_view<" not in str(getattr(column.type, "value_type", column.type))
    if not is_plain_inside or (pyarrow.compute.sum(column.value_lengths()).as_py() or 0) > len(column.values):
        raise ValueError(
            f"{column.type}: views of lists that overlap, or lie in other values, are read of plain Arrow alone"
        )


def empty_batch(schema: Any) -> Any:
    """Return a batch without rows; pyarrow's own ways to make one import pandas."""
    import pyarrow as pa

    return pa.RecordBatch.from_arrays([pa.nulls(0, field.type) for field in schema], schema=schema)


class UnpackedLimit:
    """Refuses what unpacks to more than 1000 times its size (beyond 256 MiB)."""

    def __init__(self, packed_bytes: int, name: str) -> None:
        self._limit = max(_UNQUESTIONED_BYTES, _RATIO_LIMIT * packed_bytes)
        self._name = name
        self._total = 0

    def add(self, unpacked_bytes: int) -> None:
        """Count ``unpacked_bytes``, before or after they are made.

        Raises:
            ShardError: it is too much.
        """
        self._total += unpacked_bytes
        if not 0 <= self._total <= self._limit:
            raise ShardError(
                f"{self._name}: unpacks to more than {self._limit:,} bytes: a decompression bomb",
                hint="if the data is honest, compress it less",
            )


@contextmanager
def table_errors(name: str) -> Iterator[None]:
    """Turn what pyarrow raises on a foreign table into a ``ShardError``; our own errors and the disk's pass."""
    import pyarrow as pa

    try:
        yield
    except IostackError:
        raise
    except OSError as error:
        if error.errno is not None:
            raise
        raise damaged(name, str(error)) from error
    except (pa.ArrowException, ValueError, TypeError, KeyError, IndexError, MemoryError, OverflowError) as error:
        raise damaged(name, f"{type(error).__name__}: {error}") from error


def chosen_columns(columns: Columns, there: Sequence[str], *, name: str) -> list[str]:
    """Return ``columns``, or all that are there.

    Raises:
        UsageError: one of them is not there; names the nearest.
    """
    refuse_duplicates(list(there), name=name)
    if columns is None:
        return list(there)
    for column in columns:
        if column not in there:
            raise UsageError(f"{name} has no column {column!r}", hint=closest(column, there))
    return list(columns)


def arrow_needs_unpacking(path: Path) -> bool:
    """Return whether an Arrow file is compressed or has dictionaries, as far as its first batch tells."""
    mapped = map_shard(path, name=str(path))
    schema = read_schema(mapped, name=str(path))
    if any(_has_dictionary(field.type) for field in schema):
        return True
    first = next((message for message in messages(mapped, name=str(path)) if message.is_batch), None)
    return first is not None and first.is_compressed


def _has_dictionary(type: Any) -> bool:
    import pyarrow as pa

    if pa.types.is_dictionary(type):
        return True
    if isinstance(type, pa.BaseExtensionType):
        return _has_dictionary(type.storage_type)
    return any(_has_dictionary(type.field(number).type) for number in range(type.num_fields))


def arrow_batches(path: Path, columns: Columns, *, name: str) -> Iterator[Any]:
    """Yield the record batches of an Arrow file or stream, one at a time, checked in full."""
    import pyarrow as pa

    mapped = map_shard(path, name=name)
    schema = read_schema(mapped, name=name)
    chosen = chosen_columns(columns, schema.names, name=name)
    _refuse_bombs(mapped, list(messages(mapped, name=name)), name)
    options = pa.ipc.IpcReadOptions(included_fields=sorted({schema.get_field_index(column) for column in chosen}))
    options.use_threads = False
    with pa.ipc.open_stream(pa.py_buffer(mapped)[start_of(mapped) :], options=options) as reader:
        yield empty_batch(reader.schema).select(chosen)
        for batch in reader:
            batch.validate(full=True)
            yield batch.select(chosen)


def _refuse_bombs(mapped: Mapped, found: Sequence[Message], name: str) -> None:
    limit = UnpackedLimit(len(mapped), name)
    for message in found:
        limit.add(message.unpacked_bytes)
