"""Writer "webdataset": tar archives through webdataset's own ``ShardWriter``.

A column becomes a member ``KEY.COLUMN``. Bytes are written as they are, under the column's name; other values get an
ending by which webdataset decodes them again: text ``.txt``, numbers, lists and dicts ``.json``, arrays ``.npy``.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from iostack import hookimpl
from iostack.corpus.contracts import Sample
from iostack.errors import SampleError, UsageError
from iostack.prepare.contracts import Layout, Writer
from iostack.prepare.types import Types, refuse_what_json_lacks

_ENDINGS = {"text": ("txt", "text", "transcript"), "json": ("json", "jsn"), "npy": ("npy",)}
"""By kind of value: names that mean it already, the first of which is added to others."""
_NO_LIMIT = 1 << 62
_ZST_LEVEL = 3


@hookimpl
def iostack_writers() -> Mapping[str, Callable[..., Writer]]:
    return {"webdataset": TarWriter}


class TarWriter(Writer):
    """Files ``shard-NNNNNN.tar``, with ``compress="zst"`` ``.tar.zst``."""

    format = "webdataset"

    def __init__(self, *, compress: str = "none") -> None:
        if compress not in ("zst", "none"):
            raise UsageError(f"tars are not compressed as {compress!r}", hint="choose zst or none")
        self._compress = compress
        self.identity: Mapping[str, Any] = {"compress": compress}

    def layout(self, samples: Sequence[Sample], types: Types) -> Layout:
        refuse_what_json_lacks(types, format="a member of a tar archive", besides=("binary",))
        members: dict[str, str] = {}
        for sample in samples:
            for column, value in sample.items():
                if column != "__key__" and value is not None:
                    member = _member(column, value)
                    if members.setdefault(column, member) != member:
                        raise UsageError(
                            f"column {column!r} holds {type(value).__name__} and values of another type",
                            hint="leave it out with --columns, or make it one type by --transform",
                        )
        for column, member in members.items():
            if others := [other for other, name in members.items() if name == member and other != column]:
                raise UsageError(
                    f"columns {column!r} and {others[0]!r} would both be members named {member!r}",
                    hint="rename one by --transform",
                )
        _refuse_unfit(samples)
        return {"members": members}

    def names(self, number: int) -> Sequence[str]:
        return [f"shard-{number:06}.tar{'.zst' if self._compress == 'zst' else ''}"]

    def open(self, folder: Path, number: int, layout: Layout) -> TarSink:
        return TarSink(folder / self.names(number)[0], layout["members"], is_compressed=self._compress == "zst")


class TarSink:
    """One archive; equal samples give equal bytes, since members have no time."""

    def __init__(self, file: Path, members: Mapping[str, str], *, is_compressed: bool) -> None:
        import zstandard
        from webdataset.writer import ShardWriter

        self._members = members
        self._last_key = ""
        self._file: Any = file.open("wb")
        if is_compressed:
            self._file = zstandard.ZstdCompressor(level=_ZST_LEVEL, write_checksum=True).stream_writer(self._file)
        self._archive = ShardWriter(
            "%d",
            maxcount=_NO_LIMIT,
            maxsize=_NO_LIMIT,
            opener=lambda _: self._file,
            verbose=0,
            encoder=False,
            mtime=0,
            format="PAX_FORMAT",  # names beyond 100 letters, members beyond 8 GiB
        )

    def write(self, samples: Sequence[Sample], rows: Sequence[int]) -> Sequence[Sample | Exception]:
        results: list[Sample | Exception] = []
        for sample, row in zip(samples, rows, strict=True):
            try:
                encoded = self._encoded(sample, row)
            except SampleError as error:
                results.append(error)
                continue
            self._archive.write(encoded)
            self._last_key = encoded["__key__"]
            results.append(encoded)
        return results

    def _encoded(self, sample: Sample, row: int) -> Sample:
        key = _checked_key(sample["__key__"]) if "__key__" in sample else f"{row:012}"
        if key == self._last_key:
            raise SampleError(f"two samples in a row have the key {key!r}: they would become one")
        encoded: Sample = {"__key__": key}
        for column, value in sample.items():
            if column == "__key__" or value is None:
                continue
            member = _member(column, value)
            if member != self._members.get(column, member):
                raise SampleError(f"column {column!r} holds {type(value).__name__}, other samples another type")
            encoded[member] = _bytes(column, value)
        if len(encoded) == 1:
            raise SampleError("a sample without values cannot be written to a tar archive")
        return encoded

    def close(self) -> None:
        try:
            self._archive.close()
        finally:
            self._file.close()


def _refuse_unfit(samples: Sequence[Sample]) -> None:
    """Refuse the first column of which no value can be written; where some can, the others are bad samples."""
    fit: set[str] = set()
    unfit: dict[str, SampleError] = {}
    for sample in samples:
        for column, value in sample.items():
            if column == "__key__" or value is None or column in fit:
                continue
            try:
                _bytes(column, value)
                fit.add(column)
            except SampleError as error:
                unfit.setdefault(column, error)
    for column, unwritten in unfit.items():
        if column not in fit:
            raise UsageError(
                unwritten.message, hint="leave it out with --columns, or make it text or numbers by --transform"
            ) from unwritten


def _member(column: str, value: Any) -> str:
    """Return the name of the member that holds a column, without the key."""
    if not column or any(letter in column for letter in "/\\\0") or column[0] in "._" or column.endswith("."):
        raise UsageError(
            f"the column {column!r} cannot be the name of a member of a tar archive", hint="rename it by --transform"
        )
    kind = (
        "" if isinstance(value, bytes) else "text" if isinstance(value, str) else "npy" if _is_array(value) else "json"
    )
    name = column.lower()  # as readers will have it
    if not kind or name.rpartition(".")[2] in _ENDINGS[kind]:
        return name
    return f"{name}.{_ENDINGS[kind][0]}"


def _is_array(value: Any) -> bool:
    return hasattr(value, "dtype") and getattr(value, "ndim", 0) > 0


def _bytes(column: str, value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode("utf-8", "surrogatepass")
    try:
        if _is_array(value):
            import numpy as np

            data = io.BytesIO()
            np.save(data, value, allow_pickle=False)
            return data.getvalue()
        return json.dumps(value.item() if hasattr(value, "item") else value, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise SampleError(
            f"column {column!r} holds {type(value).__name__}, which cannot be written: {error}"
        ) from error


def _checked_key(key: Any) -> str:
    """Return a key that names its members and nothing outside of a folder that they are unpacked into."""
    last = key.rpartition("/")[2] if isinstance(key, str) else ""
    is_plain = last and "." not in last and not any(letter in key for letter in "\\\0")
    if not is_plain or key.startswith("/") or ".." in key.split("/") or last.startswith("__"):
        raise SampleError(f"the key {key!r} cannot name members of a tar archive: it escapes, or holds a dot")
    return str(key)
