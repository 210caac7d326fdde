"""Parquet files: their footers, read by ranges and checked before anything is allocated, and their batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from iostack.corpus.arrow_messages import damaged
from iostack.corpus.arrow_types import kind_of
from iostack.corpus.arrow_unpack import UnpackedLimit, chosen_columns, empty_batch, table_errors
from iostack.corpus.contracts import Columns

_MAGIC = b"PAR1"
_TAIL_BYTES = 64 << 10
_FOOTER_LIMIT_BYTES = 256 << 20
_BATCH_BYTES = 16 << 20
_BATCH_ROWS = 1 << 16
_ROWS_LIMIT = 1 << 40


def read_footer(read: Callable[[int, int], bytes], size: int, name: str) -> Any:
    """Return the ``pyarrow.parquet.FileMetaData`` of a file of ``size`` bytes, of which ``read(start, stop)`` gives some.

    Raises:
        ShardError: truncated, damaged or encrypted.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    tail = read(max(0, size - _TAIL_BYTES), size)
    if size < 12 or tail[-4:] != _MAGIC:
        reason = "it is encrypted" if tail[-4:] == b"PARE" else "the footer is missing: it was cut short"
        raise damaged(name, reason)
    length = int.from_bytes(tail[-8:-4], "little")
    if not 0 < length <= min(size - 12, _FOOTER_LIMIT_BYTES):
        raise damaged(name, f"a footer of {length:,} bytes in a file of {size:,}")
    if length + 8 > len(tail):
        tail = read(size - length - 8, size)
    footer = tail[-length - 8 :]
    if len(footer) != length + 8:
        raise damaged(name, f"{len(footer):,} bytes came instead of {length + 8:,}")
    with table_errors(name):
        metadata = pq.read_metadata(pa.BufferReader(_MAGIC + footer))
        groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
        rows = [group.num_rows for group in groups]
        if any(not 0 <= count <= _ROWS_LIMIT for count in rows) or sum(rows) != metadata.num_rows:
            raise damaged(name, f"{metadata.num_rows:,} rows in row groups of {rows[:4]}")
    return metadata


def kinds_of(footer: Any, name: str) -> dict[str, str]:
    """Return what each column holds, as readers tell it.

    Raises:
        ShardError: the schema is damaged.
    """
    with table_errors(name):
        return {field.name: kind_of(field.type) for field in footer.schema.to_arrow_schema()}


def parquet_batches(path: Path, columns: Columns, *, name: str) -> Iterator[Any]:
    """Yield record batches of about 16 MiB, row group by row group, decoding only ``columns``."""
    import pyarrow.parquet as pq

    size = path.stat().st_size
    with path.open("rb") as file:

        def read(start: int, stop: int) -> bytes:
            file.seek(start)
            return file.read(stop - start)

        metadata = read_footer(read, size, name)
        _refuse_bombs(metadata, UnpackedLimit(size, name))
        # One group and one thread at a time: the loader unpacks several shards at once.
        with pq.ParquetFile(path, metadata=metadata, buffer_size=1 << 20, page_checksum_verification=True) as parquet:
            schema = parquet.schema_arrow
            chosen = chosen_columns(columns, schema.names, name=name)
            yield empty_batch(schema).select(chosen)
            for group in range(metadata.num_row_groups):
                yield from _group_batches(parquet, group, chosen, name)


def _group_batches(parquet: Any, group: int, chosen: list[str], name: str) -> Iterator[Any]:
    facts = parquet.metadata.row_group(group)
    if not facts.num_rows:
        return
    row_bytes = max(1, facts.total_byte_size // facts.num_rows)
    batch_size = max(1, min(_BATCH_ROWS, _BATCH_BYTES // row_bytes))
    num_rows = 0
    for batch in parquet.iter_batches(batch_size, row_groups=[group], columns=chosen, use_threads=False):
        num_rows += batch.num_rows
        yield batch.select(chosen)
    if num_rows != facts.num_rows:
        raise damaged(name, f"row group {group} holds {num_rows:,} rows, the footer says {facts.num_rows:,}")


def _refuse_bombs(metadata: Any, limit: UnpackedLimit) -> None:
    # What the footer says; a page that says less than it unpacks to is met by the limit on what is written. A look at a
    # column's own metadata ends the process in pyarrow 26 where its statistics are damaged.
    for group in range(metadata.num_row_groups):
        limit.add(metadata.row_group(group).total_byte_size)
