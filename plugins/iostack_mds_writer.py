"""Writer "mds": shards of MosaicML streaming, with their ``index.json``.

Layout of a shard, little endian, after mosaicml-streaming's ``MDSWriter``:

    u32      samples N
    u32[N+1] byte offset of each sample in the file, and the end
    JSON     the columns, their encodings and sizes
    bytes    samples: u32 size of each value whose encoding has no fixed size, then the values
"""

from __future__ import annotations

import json
import shutil
import struct
from array import array
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from iostack import hookimpl
from iostack.corpus.contracts import Sample
from iostack.errors import PrepareError, SampleError, UsageError
from iostack.prepare.contracts import Layout, Writer
from iostack.prepare.types import Types, refuse_what_json_lacks

_U32 = struct.Struct("<I")
_SIZES = {"int": 8, "float64": 8}
_JSON_KINDS = ("json", "str", "int", "float64")
_DTYPES = {"uint8": 8, "int8": 9, "uint16": 16, "int16": 17, "float16": 18, "uint32": 32, "int32": 33}
_DTYPES |= {"float32": 34, "uint64": 64, "int64": 65, "float64": 66}
_SHAPE_DTYPES = ("u1", "<u2", "<u4", "<u8")
_MAX_BYTES = (1 << 32) - 1


@hookimpl
def iostack_writers() -> Mapping[str, Callable[..., Writer]]:
    return {"mds": MdsWriter}


class MdsWriter(Writer):
    """Files ``shard.NNNNN.mds``."""

    format = "mds"

    def __init__(self) -> None:
        self.identity: Mapping[str, Any] = {}

    def layout(self, samples: Sequence[Sample], types: Types) -> Layout:
        refuse_what_json_lacks(types, format="MDS", besides=("binary", "decimal128", "decimal256"))
        encodings: dict[str, str] = {}
        for sample in samples:
            for column, value in sample.items():
                if value is None:
                    continue
                encoding = _encoding(value)
                if encoding is None or encodings.setdefault(column, encoding) != encoding:
                    other = f" and {encodings[column]}" if encoding else ""
                    raise _not_one_column(column, f"{type(value).__name__}{other}")
        for column in dict.fromkeys(column for sample in samples for column in sample):
            if any(sample.get(column) is None for sample in samples):
                encodings[column] = _encoding_with_nulls(column, encodings.get(column), types.get(column))
        return {"encodings": encodings}

    def names(self, number: int) -> Sequence[str]:
        return [f"shard.{number:05}.mds"]

    def open(self, folder: Path, number: int, layout: Layout) -> MdsSink:
        return MdsSink(folder / self.names(number)[0], layout["encodings"], _columns(layout))

    def summary(self, layout: Layout, shards: Sequence[tuple[str, int, int]]) -> Mapping[str, bytes]:
        entries = [
            {
                **_columns(layout),
                "raw_data": {"basename": name, "bytes": size, "hashes": {}},
                "samples": samples,
                "size_limit": None,
                "version": 2,
                "zip_data": None,
            }
            for name, size, samples in shards
        ]
        return {"index.json": json.dumps({"shards": entries, "version": 2}, sort_keys=True).encode()}


def _columns(layout: Layout) -> dict[str, Any]:
    """Return what the header of a shard and its entry in the index say of the columns, which are sorted."""
    names = sorted(layout["encodings"])
    encodings = [layout["encodings"][name] for name in names]
    return {
        "column_encodings": encodings,
        "column_names": names,
        "column_sizes": [_SIZES.get(encoding) for encoding in encodings],
        "compression": None,
        "format": "mds",
        "hashes": [],
    }


class MdsSink:
    """Streams samples to a file beside the shard: the offsets, which come before them, are known at the end."""

    def __init__(self, file: Path, encodings: Mapping[str, str], columns: Mapping[str, Any]) -> None:
        self._path = file
        self._encodings = dict(sorted(encodings.items()))
        self._header = json.dumps({**columns, "size_limit": None}, sort_keys=True).encode()
        self._bodies = file.with_suffix(".bodies").open("w+b")
        self._sizes = array("I")
        self._bytes = 0

    def write(self, samples: Sequence[Sample], rows: Sequence[int]) -> Sequence[Sample | Exception]:
        results: list[Sample | Exception] = []
        for sample in samples:
            try:
                body = self._encoded(sample)
            except SampleError as error:
                results.append(error)
                continue
            self._bytes += len(body) + 4
            if self._bytes + len(self._header) + 8 > _MAX_BYTES:
                raise PrepareError(
                    f"{self._path.name} would exceed 4 GiB, which MDS cannot address", hint="lower --shard-bytes"
                )
            self._bodies.write(body)
            self._sizes.append(len(body))
            results.append(sample)
        return results

    def _encoded(self, sample: Sample) -> bytes:
        if others := sample.keys() - self._encodings.keys():
            raise SampleError(f"the first samples have no column {min(map(str, others))!r}: choose with --columns")
        sizes, values = [], []
        for column, encoding in self._encodings.items():
            value = _encode(column, sample.get(column), encoding)
            values.append(value)
            if encoding not in _SIZES:
                sizes.append(_U32.pack(len(value)))
        return b"".join((*sizes, *values))

    def close(self) -> None:
        import numpy as np

        with self._bodies, self._path.open("wb") as file:
            offsets = np.zeros(len(self._sizes) + 1, np.int64)
            np.cumsum(np.array(self._sizes, np.int64), out=offsets[1:])
            offsets += 4 + 4 * len(offsets) + len(self._header)
            file.write(_U32.pack(len(self._sizes)))
            file.write(offsets.astype("<u4").data)
            file.write(self._header)
            self._bodies.seek(0)
            shutil.copyfileobj(self._bodies, file, 1 << 20)
        Path(self._bodies.name).unlink()


def _not_one_column(column: str, held: str) -> UsageError:
    return UsageError(
        f"column {column!r} holds {held}, which cannot be one column of MDS",
        hint="leave it out with --columns, or make it one type by --transform",
    )


def _encoding_with_nulls(column: str, encoding: str | None, kind: Any) -> str:
    """Return the encoding of a column that holds nulls too, which JSON alone has; ``kind`` is its type if that is known."""
    if encoding in _JSON_KINDS or (encoding is None and kind is not None and str(kind) not in ("binary",)):
        return "json"
    raise _not_one_column(column, f"{encoding} and nulls" if encoding else "NoneType")


def _encoding(value: Any) -> str | None:
    """Return the name of the encoding for a value, or None if there is none."""
    if isinstance(value, bytes):
        return "bytes"
    if isinstance(value, Decimal):
        return "str_decimal"
    if isinstance(value, str):
        return "str"
    if hasattr(value, "dtype") and value.ndim:
        return "ndarray" if value.dtype.name in _DTYPES else None
    if isinstance(value, bool | list | dict):
        return "json"
    if hasattr(value, "item"):
        value = value.item()
    return "int" if isinstance(value, int) else "float64" if isinstance(value, float) else None


def _encode(column: str, value: Any, encoding: str) -> bytes:
    if value is None and encoding != "json":
        raise SampleError(
            f"column {column!r} is null, where the first samples hold {encoding}:"
            " leave such rows out with --filter, or fill them by --transform"
        )
    try:
        kind = "json" if value is None else _encoding(value)
        if kind != encoding and not (encoding == "json" and kind in _JSON_KINDS):
            raise TypeError(f"other samples hold {encoding}")
        if encoding == "bytes":
            return bytes(value)
        if encoding == "str":
            return str(value).encode()
        if encoding == "json":
            return json.dumps(value, allow_nan=False, default=_plain).encode()
        if encoding == "str_decimal":
            return str(value).encode()
        if encoding == "ndarray":
            return _array_bytes(value)
        return struct.pack("<q" if encoding == "int" else "<d", value)
    except (TypeError, ValueError, RecursionError, struct.error) as error:
        raise SampleError(f"column {column!r} holds {type(value).__name__} that MDS cannot hold: {error}") from error


def _plain(value: Any) -> Any:
    if hasattr(value, "item"):  # a scalar of numpy's
        return value.item()
    raise TypeError(type(value).__name__)


def _array_bytes(array: Any) -> bytes:
    """Dtype, then dimensions and the width of their numbers in one byte, the shape, the values."""
    import numpy as np

    if not array.size:
        raise ValueError("an array without elements")
    width = next(width for width in range(4) if max(array.shape) < 1 << (8 << width))
    shape = np.array(array.shape, _SHAPE_DTYPES[width]).tobytes()
    values = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()
    return bytes([_DTYPES[array.dtype.name], array.ndim << 2 | width]) + shape + values
