"""How many samples tar archives hold, as indexes beside them say: nothing of the archives is read but one block.

    *.json                  {"shardlist": [{"url", "nsamples", "filesize"}]}, of webdataset's ``wids``
    .nv-meta/.info.json     {"shard_counts": {path: samples}}, or .yaml with the same, of Megatron-Energon
    NAME.tar.idx            u64 offset of each sample, little endian, then where the last ends, of Megatron-Energon

They are hints: one that is damaged, or of another size of the archive, is as if it were not there.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

from iostack import logs
from iostack.corpus.contracts import ObjectInfo, Origin, Shard

logger = logs.logger(__name__)

_INFO = (".nv-meta/.info.json", ".nv-meta/.info.yaml")
_MAX_BYTES = 64 << 20
_MAX_SAMPLES = 1 << 40


class TarCounts:
    """The indexes that lie among the objects of one listing. Thread-safe; each is read once."""

    def __init__(self, objects: Sequence[ObjectInfo]) -> None:
        paths = {info.path for info in objects}
        self._offsets = {
            info.path.removesuffix(".idx"): info
            for info in objects
            if info.path.endswith(".tar.idx") and info.path.removesuffix(".idx") in paths
        }
        self._lists = [info for info in objects if info.path.endswith(".json") and "/" not in info.path]
        self._lock = threading.Lock()
        self._known: dict[str, tuple[int, int | None]] | None = None

    @property
    def objects(self) -> Sequence[ObjectInfo]:
        """What is taken for an index, by its name."""
        return [*self._offsets.values(), *self._lists]

    def count(self, shard: Shard, origin: Origin) -> int | None:
        """Return the samples of an archive, or None where no index knows it as it is."""
        if shard.compression:
            return None
        info = shard.object
        with self._lock:
            if self._known is None:
                self._known = _read_lists(self._lists, origin)
        for name in (info.path, PurePosixPath(info.path).name):
            if name in self._known:
                samples, size = self._known[name]
                if size in (None, info.bytes):
                    return samples
        return _count_offsets(self._offsets[info.path], info, origin) if info.path in self._offsets else None


def _read_lists(lists: Sequence[ObjectInfo], origin: Origin) -> dict[str, tuple[int, int | None]]:
    """Return (samples, bytes or None) by path or name of the archives."""
    known: dict[str, tuple[int, int | None]] = {}
    for info in (*lists, *(found for path in _INFO if (found := origin.info(path)))):
        if info.bytes > _MAX_BYTES:
            continue
        try:
            text = origin.read(info.path, 0, info.bytes).decode()
            known |= _shard_list(text) if info.path in {each.path for each in lists} else _shard_counts(text)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            logger.debug("%s %s is no index of archives: %s", origin.uri, info.path, error)
    return known


def _shard_list(text: str) -> dict[str, tuple[int, int | None]]:
    found: dict[str, tuple[int, int | None]] = {}
    for entry in json.loads(text)["shardlist"]:
        name = entry["url"].split("?")[0].rsplit("/", 1)[-1]
        if name in found:
            raise ValueError(f"two archives are named {name[:200]!r}")
        size = entry.get("filesize")
        found[name] = (_samples(entry["nsamples"]), size if size is None else int(size))
    return found


def _shard_counts(text: str) -> dict[str, tuple[int, int | None]]:
    if text.lstrip().startswith("{"):
        counts: dict[str, Any] = json.loads(text)["shard_counts"]
    else:
        _, _, below = text.partition("shard_counts:")
        lines = re.findall(r"^ +['\"]?(.+?)['\"]?: (\d{1,15})\s*$", re.split(r"\n(?=\S)", below)[0], re.MULTILINE)
        counts = {name: int(samples) for name, samples in lines}
    return {name: (_samples(samples), None) for name, samples in counts.items()}


def _samples(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= _MAX_SAMPLES:
        raise ValueError(f"an archive of {value!r} samples"[:100])
    return value


def _count_offsets(index: ObjectInfo, archive: ObjectInfo, origin: Origin) -> int | None:
    import numpy as np

    if index.bytes % 8 or not 8 <= index.bytes <= _MAX_BYTES:
        return None
    offsets = np.frombuffer(origin.read(index.path, 0, index.bytes), "<u8")
    end = int(offsets[-1])
    if offsets[0] != 0 or (offsets[1:] <= offsets[:-1]).any() or end % 512 or end > archive.bytes:
        return None
    block = origin.read(archive.path, end, min(end + 512, archive.bytes))
    ends_there = not block.strip(b"\0")  # at the end mark; older indexes stop with the last sample
    return len(offsets) - ends_there
