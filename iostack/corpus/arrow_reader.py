"""Rows of a mapped Arrow file or stream, in any order, at the cost of what they hold.

Columns of strings, bytes and numbers are read without pyarrow: the row index knows where the buffers of every batch lie in
the file, so any rows are gathered with a few numpy operations and one slice each. All others (lists, structs, times,
decimals, ...) go through pyarrow, batch by batch, after ``validate(full=True)``: Arrow itself trusts offsets. Values are
those of ``to_pylist`` of the column's ``plain_type``.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from iostack.corpus.arrow_buffers import FLAT, FlatColumn, Values, place_buffers
from iostack.corpus.arrow_messages import damaged, messages, read_schema
from iostack.corpus.arrow_types import kind_of, plain_array, plain_type
from iostack.corpus.arrow_unpack import chosen_columns, table_errors
from iostack.corpus.contracts import Column, Columns, Counts, Sample, ShardFiles
from iostack.corpus.mapping import Mapped, map_shard
from iostack.corpus.row_index import RowIndex, load_or_build
from iostack.errors import SampleError

_OPEN_BATCHES = 8


def open_arrow(files: ShardFiles) -> ArrowReader:
    """Open a file that ``Unpacking`` made or did not have to make.

    Raises:
        ShardError: damaged or hostile. UsageError: a column is not there.
    """
    mapped = map_shard(files.path, name=files.name)
    build = partial(_index, mapped, files.columns, files.name)
    index = load_or_build(files.index, made_by="arrow 1", shard_bytes=len(mapped), build=build)
    return ArrowReader(files.name, mapped, index)


class ArrowReader:
    """One shard. Thread-safe."""

    def __init__(self, name: str, mapped: Mapped, index: RowIndex) -> None:
        self._name = name
        self._ends = index.arrays["end"]
        described: list[tuple[str, str, str]] = json.loads(index.notes["columns"])
        self.kinds = {column: kind for column, _, kind in described}
        self.counts = Counts(int(self._ends[-1]))
        self._batches = batches = _Batches(name, mapped, index.arrays["message"])
        self._columns: list[FlatColumn | _AnyColumn] = [
            FlatColumn(mapped, layout, index.arrays[f"place{number}"], f"{name}: column {column!r}")
            if layout in FLAT
            else _AnyColumn(batches, column, f"{name}: column {column!r}")
            for number, (column, layout, _) in enumerate(described)
        ]

    def read(self, rows: Sequence[int]) -> Sequence[Sample | Exception]:
        wanted = np.asarray(rows, np.int64)
        batches, inside = self._find(wanted)
        columns = [column.values(batches, inside) for column in self._columns]
        samples = self._samples([values for values, _ in columns])
        for _, bad in columns:
            for place, error in bad.items():
                samples[place] = SampleError(f"{error.message} (row {wanted[place]})", hint=error.hint)
        return samples

    def read_columns(self, rows: NDArray[np.int64]) -> Mapping[str, Column] | None:
        batches, inside = self._find(rows)
        columns = [column.column(batches, inside) for column in self._columns]
        return None if any(column is None for column in columns) else dict(zip(self.kinds, columns))

    def _find(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the batch of each row, and its place there."""
        # As unsigned numbers negative rows are beyond the end too.
        if len(rows) and rows.view(np.uint64).max() >= self.counts.samples:
            raise IndexError(f"{self._name} has {self.counts.samples:,} rows, not {rows.min()} to {rows.max()}")
        batches = np.searchsorted(self._ends, rows, side="right") - 1
        return batches, rows - self._ends[batches]

    def _samples(self, columns: list[list[Any]]) -> list[Sample | Exception]:
        names = list(self.kinds)
        if len(names) == 1:
            return [{names[0]: value} for value in columns[0]]
        return [dict(zip(names, row)) for row in zip(*columns)]

    def types(self) -> dict[str, Any]:
        """Return the Arrow type that the values of each column have."""
        schema = self._batches.schema()
        return {column: plain_type(schema.field(column).type) for column in self.kinds}

    def close(self) -> None:
        self._columns = []


class _Batches:
    """Record batches of one file, opened again and again: each is checked once."""

    def __init__(self, name: str, mapped: Mapped, offsets: NDArray[Any]) -> None:
        self._name = name
        self._mapped = mapped
        self._offsets = offsets
        self._lock = threading.Lock()
        self._schema: Any = None
        self._open: OrderedDict[int, Any] = OrderedDict()
        self._checked: set[tuple[int, str]] = set()

    def schema(self) -> Any:
        """Return the schema of the file."""
        return read_schema(self._mapped, name=self._name)

    def column(self, batch: int, column: str) -> Any:
        """Return one column of one batch, checked in full.

        Raises:
            ShardError: it is damaged.
        """
        with self._lock, table_errors(self._name):
            if (found := self._open.get(batch)) is None:
                self._schema = self._schema or read_schema(self._mapped, name=self._name)
                found = self._open[batch] = read_batch(self._mapped, int(self._offsets[batch]), self._schema)
                if len(self._open) > _OPEN_BATCHES:
                    self._open.popitem(last=False)
            self._open.move_to_end(batch)
            values = found.column(column)
            if (batch, column) not in self._checked:
                values.validate(full=True)
                self._checked.add((batch, column))
            return values


class _AnyColumn:
    """A column that pyarrow turns into Python values."""

    def __init__(self, batches: _Batches, column: str, name: str) -> None:
        self._batches = batches
        self._column = column
        self._name = name

    def values(self, batches: NDArray[Any], inside: NDArray[Any]) -> Values:
        """Return the value of each row, and the errors of bad ones by their place."""
        if (column := self.column(batches, inside)) is not None:
            with suppress(Exception):  # some value is bad: which one is found below
                return column.to_pylist(), {}
        found: list[Any] = [None] * len(batches)
        bad: dict[int, SampleError] = {}
        for place, batch, row in zip(range(len(batches)), batches.tolist(), inside.tolist(), strict=True):
            values = self._batches.column(batch, self._column)
            try:
                found[place] = plain_array(values.slice(row, 1))[0].as_py()
            except Exception as error:  # noqa: BLE001 - whatever pyarrow or datetime raises, this value makes them
                bad[place] = SampleError(f"{self._name}: {values.type}: {error}", hint="correct the value or remove it")
        return found, bad

    def column(self, batches: NDArray[Any], inside: NDArray[Any]) -> Column:
        """Return the rows as an array of pyarrow; None where they must be looked at one by one."""
        import pyarrow as pa

        order = np.argsort(batches, kind="stable")
        taken = []
        for rows in np.split(order, np.flatnonzero(np.diff(batches[order])) + 1) if len(order) else []:
            column = self._batches.column(int(batches[rows[0]]), self._column)
            try:
                taken.append(plain_array(column.take(_int64s(inside[rows]))))
            except Exception:  # noqa: BLE001 - pyarrow cannot take all types, and refuses values that it cannot convert
                return None
        places = np.empty_like(order)
        places[order] = np.arange(len(order))
        return pa.concat_arrays(taken).take(_int64s(places)) if taken else []


def _int64s(numbers: NDArray[np.int64]) -> Any:
    """Return the numbers as pyarrow takes them; ``pyarrow.array`` of them would import pandas."""
    import pyarrow as pa

    return pa.Array.from_buffers(pa.int64(), len(numbers), [None, pa.py_buffer(numbers)])


def read_batch(mapped: Mapped, offset: int, schema: Any) -> Any:
    """Return the uncompressed record batch whose message is at ``offset``, over the map."""
    import pyarrow as pa

    return pa.ipc.read_record_batch(pa.ipc.read_message(pa.py_buffer(mapped)[offset:]), schema)


def _index(mapped: Mapped, columns: Columns, name: str) -> RowIndex:
    """Find the batches and, of flat columns, where their buffers lie."""
    schema = read_schema(mapped, name=name)
    chosen = chosen_columns(columns, schema.names, name=name)
    found = [message for message in messages(mapped, name=name) if message.is_batch]
    if any(message.is_compressed for message in found):
        raise damaged(name, "some of its batches are compressed, and others are not")
    described = [(column, str(schema.field(column).type), kind_of(schema.field(column).type)) for column in chosen]
    places: dict[str, list[list[int]]] = {f"place{at}": [] for at, (_, kind, _) in enumerate(described) if kind in FLAT}
    with table_errors(name):
        for message in found:
            batch = read_batch(mapped, message.offset, schema)
            if batch.num_rows != message.num_rows:
                raise damaged(name, f"the batch at byte {message.offset:,} has {batch.num_rows:,} rows")
            for number, (column, layout, _) in enumerate(described):
                if layout in FLAT:
                    places[f"place{number}"].append(place_buffers(mapped, batch.column(column), layout, name=name))
    arrays = {
        "end": np.cumsum([0, *(message.num_rows for message in found)], dtype=np.int64),
        "message": np.array([message.offset for message in found], np.int64),
        **{key: np.array(value, np.int64).reshape(-1, 3).ravel() for key, value in places.items()},
    }
    return RowIndex(arrays, {"columns": json.dumps(described)})
