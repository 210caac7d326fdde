"""Writer "jsonl": one JSON object per line, as ``.jsonl.zst`` of many frames, or plain.

Each frame is a run of whole lines of about 1 MiB, so a reader may decompress frames in parallel and begin at any of them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from iostack import hookimpl
from iostack.corpus.contracts import Sample
from iostack.errors import SampleError, UsageError
from iostack.prepare.contracts import Layout, Writer
from iostack.prepare.types import Types, refuse_what_json_lacks

_FRAME_BYTES = 1 << 20
_LEVEL = 3


@hookimpl
def iostack_writers() -> Mapping[str, Callable[..., Writer]]:
    return {"jsonl": JsonlWriter}


class JsonlWriter(Writer):
    """Files ``part-NNNNNN.jsonl.zst``; with ``compress="none"`` without ``.zst``."""

    format = "jsonl"

    def __init__(self, *, compress: str = "zst") -> None:
        if compress not in ("zst", "none"):
            raise UsageError(f"text is not compressed as {compress!r}", hint="choose zst or none")
        self._compress = compress
        self.identity: Mapping[str, Any] = {"compress": compress}

    def layout(self, samples: Sequence[Sample], types: Types) -> Layout:
        refuse_what_json_lacks(types, format="JSON")
        for sample in samples:
            for column, value in sample.items():
                try:
                    _line({column: value})
                except SampleError as error:
                    raise UsageError(
                        error.message,
                        hint="leave the column out with --columns, or turn bytes into text by --transform",
                    ) from error
        return {}

    def names(self, number: int) -> Sequence[str]:
        return [f"part-{number:06}.jsonl{'.zst' if self._compress == 'zst' else ''}"]

    def open(self, folder: Path, number: int, layout: Layout) -> LinesSink:
        return LinesSink(folder / self.names(number)[0], is_compressed=self._compress == "zst")


class LinesSink:
    """Collects lines for one frame, and writes it."""

    def __init__(self, file: Path, *, is_compressed: bool) -> None:
        import zstandard

        self._file = file.open("wb")
        self._compressor = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True) if is_compressed else None
        self._lines: list[bytes] = []
        self._bytes = 0

    def write(self, samples: Sequence[Sample], rows: Sequence[int]) -> Sequence[Sample | Exception]:
        results: list[Sample | Exception] = []
        for sample in samples:
            try:
                line = _line(sample)
            except SampleError as error:
                results.append(error)
                continue
            self._lines.append(line)
            self._bytes += len(line)
            if self._bytes >= _FRAME_BYTES:
                self._flush()
            results.append(sample)
        return results

    def _flush(self) -> None:
        data = b"".join(self._lines)
        self._file.write(self._compressor.compress(data) if self._compressor else data)
        self._lines, self._bytes = [], 0

    def close(self) -> None:
        with self._file:
            if self._lines:
                self._flush()


def _line(sample: Sample) -> bytes:
    try:
        text = json.dumps(sample, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_plain)
        try:
            return text.encode() + b"\n"
        except UnicodeEncodeError:  # half of a surrogate pair, which only escapes can hold
            return json.dumps(sample, allow_nan=False, separators=(",", ":"), default=_plain).encode() + b"\n"
    except (TypeError, ValueError, RecursionError) as error:
        raise _unfit(sample) or SampleError(f"JSON cannot hold the sample: {error}") from error


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):  # arrays and their scalars
        return value.tolist()
    raise TypeError(type(value).__name__)


def _unfit(sample: Sample) -> SampleError | None:
    """Return the error for the first column that JSON cannot hold."""
    for column, value in sample.items():
        try:
            json.dumps({column: value}, allow_nan=False, default=_plain)
        except (TypeError, ValueError, RecursionError) as error:
            return SampleError(f"column {column!r} holds {type(value).__name__} that JSON cannot hold: {error}")
    return None
