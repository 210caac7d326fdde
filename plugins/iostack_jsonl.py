"""Format "jsonl": one JSON object per line, plain or compressed; the row index holds where each line starts.

With orjson (the extra ``fast``) a line of 2 KB of text is parsed in 1.7 us instead of 5.1; what it refuses, or would give
as a float where the line holds a longer integer, is parsed by the standard library: the samples are the same.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache, partial
from operator import sub
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from iostack import hookimpl
from iostack.corpus.contracts import Counts, Format, ObjectInfo, Origin, Sample, Shard, ShardFiles
from iostack.corpus.detect import shards_by_suffix
from iostack.corpus.mapping import Mapped, map_shard
from iostack.corpus.row_index import RowIndex, load_or_build
from iostack.errors import SampleError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_MAX_LINE_BYTES = 256 << 20
_BLOCK_BYTES = 16 << 20
_BLANKS = b" \t\r\n"
_BEYOND_INTEGERS = float(1 << 63)
_SIMPLE = frozenset((str, int, bool, type(None)))


@hookimpl
def iostack_formats() -> Sequence[Format]:
    return [Jsonl()]


class Jsonl:
    """Files ``.jsonl`` and ``.ndjson``, also with ``.gz`` or ``.zst``; ``.json`` where there is nothing else."""

    name = "jsonl"
    holds_tokens = False

    def find_shards(self, objects: Sequence[ObjectInfo]) -> Sequence[Shard]:
        found = shards_by_suffix(objects, (".jsonl", ".ndjson"))
        if not found and all(PurePosixPath(info.path).suffix == ".json" for info in objects):
            found = [Shard(info) for info in objects]
        return found

    def count(self, shard: Shard, origin: Origin) -> Counts | None:
        return None

    def open(self, files: ShardFiles) -> JsonlReader:
        mapped = map_shard(files.path, name=files.name)
        build = partial(_find_lines, mapped)
        index = load_or_build(files.index, made_by="jsonl 1", shard_bytes=len(mapped), build=build)
        return JsonlReader(files.name, mapped, index.arrays["start"])


class JsonlReader:
    """Rows of one file; blank lines are none."""

    def __init__(self, name: str, mapped: Mapped, starts: NDArray[np.int64]) -> None:
        self._name = name
        self._mapped: Mapped = mapped
        self._starts = starts
        self.counts = Counts(len(starts) - 1)

    def read(self, rows: Sequence[int]) -> Sequence[Sample | Exception]:
        import numpy as np

        wanted = np.asarray(rows, np.int64)
        starts, stops = self._starts[wanted].tolist(), self._starts[wanted + 1].tolist()
        fast = _fast_parse()
        if fast is None or max(map(sub, stops, starts), default=0) > _MAX_LINE_BYTES:
            return [self._parse(start, stop) for start, stop in zip(starts, stops, strict=True)]
        samples: list[Sample | Exception] = []
        mapped = self._mapped
        for start, stop in zip(starts, stops, strict=True):
            try:
                sample = fast(mapped[start:stop])
                if type(sample) is dict and _SIMPLE.issuperset(map(type, sample.values())):
                    samples.append(sample)
                    continue
            except ValueError:  # or no JSON to orjson alone
                pass
            samples.append(self._parse(start, stop))
        return samples

    def _parse(self, start: int, stop: int) -> Sample | Exception:
        """Return the sample of a line, whatever it is; ``read`` does without for what is most often there."""
        if stop - start > _MAX_LINE_BYTES:
            return self._bad(start, f"{stop - start:,} bytes long, the limit is {_MAX_LINE_BYTES:,}")
        try:
            sample = _parse(self._mapped[start:stop])
        except (ValueError, RecursionError) as error:
            return self._bad(start, str(error))
        if not isinstance(sample, dict):
            return self._bad(start, f"a JSON object was expected, not {type(sample).__name__}")
        return sample

    def _bad(self, start: int, reason: str) -> SampleError:
        import numpy as np

        line = 1 + sum(
            np.count_nonzero(_bytes(self._mapped, at, min(at + _BLOCK_BYTES, start)) == ord("\n"))
            for at in range(0, start, _BLOCK_BYTES)
        )
        return SampleError(f"{self._name}: line {line:,}: {reason}", hint="correct the line or remove it")

    def close(self) -> None:
        self._mapped = b""


@cache
def _fast_parse() -> Callable[[bytes], Any] | None:
    try:
        return importlib.import_module("orjson").loads  # type: ignore[no-any-return]
    except ImportError:
        return None


def _parse(line: bytes) -> Any:
    """Return the value of a line, as ``json.loads`` gives it.

    Raises:
        ValueError, RecursionError: it is no JSON.
    """
    if (fast := _fast_parse()) is not None:
        with suppress(ValueError):
            value = fast(line)
            if not _holds_long_integer(value):
                return value
    return json.loads(line.decode())


def _holds_long_integer(value: Any) -> bool:
    """Return whether there is a float so large that it may have been written as an integer."""
    if type(value) is float:
        return abs(value) >= _BEYOND_INTEGERS
    if type(value) is dict:
        value = value.values()
    elif type(value) is not list:
        return False
    return not _SIMPLE.issuperset(map(type, value)) and any(map(_holds_long_integer, value))


def _bytes(mapped: Mapped, start: int, stop: int) -> NDArray[np.uint8]:
    import numpy as np

    return np.frombuffer(mapped, np.uint8, stop - start, start)


def _find_lines(mapped: Mapped) -> RowIndex:
    """Find where every line that is not blank starts, and the end of the file."""
    import numpy as np

    size = len(mapped)
    first = 3 if mapped[:3] == b"\xef\xbb\xbf" else 0  # a byte order mark
    found = [np.array([first], np.int64)]
    for start in range(0, size, _BLOCK_BYTES):
        block = _bytes(mapped, start, min(start + _BLOCK_BYTES, size))
        found.append(np.flatnonzero(block == ord("\n")) + (start + 1))
    starts = np.concatenate(found)
    starts = starts[starts < size]
    if len(starts):
        suspects = np.flatnonzero(np.isin(_bytes(mapped, 0, size)[starts], list(_BLANKS)))
        stops = np.append(starts, size)[suspects + 1]
        blank = [not mapped[a:b].strip(_BLANKS) for a, b in zip(starts[suspects].tolist(), stops.tolist(), strict=True)]
        starts = np.delete(starts, suspects[np.array(blank, bool)])
    return RowIndex({"start": np.append(starts, size)}, {})
