"""Row indexes: where each sample of a shard lies, found once and kept as named arrays in the cache folder.

The file is a safetensors file, mapped when it is read. A file that is missing, damaged (its digest differs), or of
another version of shard or program is built anew; one that cannot be written is kept in memory.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash

from iostack import logs
from iostack.corpus.mapping import map_index

if TYPE_CHECKING:
    from numpy.typing import NDArray

logger = logs.logger(__name__)

_DTYPES = {"I64": "<i8", "I32": "<i4", "U8": "u1"}


@dataclass(frozen=True)
class RowIndex:
    """Named arrays, and short notes of text beside them."""

    arrays: Mapping[str, NDArray[Any]]
    notes: Mapping[str, str]

    def digest(self) -> str:
        """Return a digest of everything in the index."""
        import numpy as np

        hasher = xxhash.xxh3_128(json.dumps(sorted(self.notes.items())).encode())
        for name in sorted(self.arrays):
            hasher.update(f"{name}:{self.arrays[name].dtype.str}:{len(self.arrays[name])}".encode())
            hasher.update(np.ascontiguousarray(self.arrays[name]).data.cast("B"))
        return hasher.hexdigest()


def load_or_build(path: Path, *, made_by: str, shard_bytes: int, build: Callable[[], RowIndex]) -> RowIndex:
    """Return the index kept at ``path``, or build it and keep it there.

    ``made_by`` names the builder and its version; an index of another builder or shard size is not used.
    """
    path = path.with_name(path.name + ".rows")
    origin = f"{made_by}:{shard_bytes}"
    if (kept := _load(path, origin)) is not None:
        return kept
    built = build()
    _save(path, origin, built)
    return built


def _save(path: Path, origin: str, index: RowIndex) -> None:
    from safetensors.numpy import save

    metadata = {"origin": origin, "digest": index.digest(), "notes": json.dumps(dict(index.notes))}
    temporary = path.with_name(f"{path.name}.{os.getpid()}.{os.urandom(4).hex()}.part")
    try:
        temporary.write_bytes(save(dict(index.arrays), metadata=metadata))
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        logger.warning("row index %s is kept in memory only: %s", path, error)


def _load(path: Path, origin: str) -> RowIndex | None:
    try:
        index, metadata = _parse(map_index(path))
        sound = metadata["origin"] == origin and metadata["digest"] == index.digest()
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        sound = False
    if not sound:
        logger.info("row index %s is damaged or of another version: building it anew", path)
        return None
    return index


def _parse(mapped: memoryview) -> tuple[RowIndex, dict[str, str]]:
    import numpy as np

    body = 8 + int.from_bytes(mapped[:8], "little")
    header = json.loads(bytes(mapped[8:body]))
    metadata = header.pop("__metadata__")
    arrays = {}
    for name, entry in header.items():
        start, stop = entry["data_offsets"]
        dtype = np.dtype(_DTYPES[entry["dtype"]])
        if not 0 <= start <= stop:
            raise ValueError(f"{name} runs from {start} to {stop}")
        arrays[name] = np.frombuffer(mapped, dtype, (stop - start) // dtype.itemsize, body + start)
    return RowIndex(arrays, json.loads(metadata["notes"])), metadata
