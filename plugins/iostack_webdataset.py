"""Format "webdataset": tar archives whose members are grouped into samples by the names they share.

The rule is webdataset's own (``webdataset/tariterators.py``): ``dir/key.ext1.ext2`` belongs to the sample ``dir/key``
under the name ``ext1.ext2`` in lower case; a sample ends where the key changes; members without an extension and those
named ``__...__`` are skipped. Values are the members' bytes: decoding is a transform's business.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from iostack import hookimpl
from iostack.corpus.contracts import Counts, Format, ObjectInfo, Origin, Sample, Shard, ShardFiles
from iostack.corpus.detect import shards_by_suffix
from iostack.corpus.mapping import Mapped, map_shard
from iostack.corpus.row_index import RowIndex, load_or_build
from iostack.corpus.tar_counts import TarCounts
from iostack.corpus.tar_index import members
from iostack.errors import ShardError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SKIPPED = re.compile(r"__[^/]*__($|/)")


@hookimpl
def iostack_formats() -> Sequence[Format]:
    return [WebDataset()]


class WebDataset:
    """Files ``.tar``; compressed ones (``.tar.gz``, ``.tgz``, ``.tar.zst``) are decompressed into the cache."""

    name = "webdataset"
    holds_tokens = False

    def __init__(self) -> None:
        self._counts = TarCounts(())

    def find_shards(self, objects: Sequence[ObjectInfo]) -> Sequence[Shard]:
        found = shards_by_suffix(objects, (".tar",))
        self._counts = TarCounts(objects if found else ())
        return found

    def find_indexes(self) -> Sequence[ObjectInfo]:
        return self._counts.objects

    def count(self, shard: Shard, origin: Origin) -> Counts | None:
        samples = self._counts.count(shard, origin)
        return None if samples is None else Counts(samples)

    def open(self, files: ShardFiles) -> TarReader:
        mapped = map_shard(files.path, name=files.name)
        build = partial(_group, mapped, files.name)
        index = load_or_build(files.index, made_by="webdataset 1", shard_bytes=len(mapped), build=build)
        return TarReader(mapped, index)


class TarReader:
    """Samples of one archive, sliced out of its map."""

    def __init__(self, mapped: Mapped, index: RowIndex) -> None:
        self._mapped: Mapped = mapped
        # A number is taken out of a memoryview in 35 ns, out of an array in 80, and a few rows of an array in a microsecond.
        self._key_ends = index.arrays["key_end"].data
        self._keys = index.arrays["keys"].data
        self._ends = index.arrays["member_end"].data
        self._extension = index.arrays["extension"].data
        self._offset = index.arrays["offset"].data
        self._size = index.arrays["size"].data
        self._extensions: list[str] = json.loads(index.notes["extensions"])
        self.counts = Counts(len(self._ends) - 1)

    def read(self, rows: Sequence[int]) -> Sequence[Sample | Exception]:
        mapped, keys, names = self._mapped, self._keys, self._extensions
        key_ends, ends = self._key_ends, self._ends
        extensions, offsets, sizes = self._extension, self._offset, self._size
        samples: list[Sample | Exception] = []
        for row in rows:
            key = str(keys[key_ends[row] : key_ends[row + 1]], "utf-8", "surrogateescape")
            sample: Sample = {"__key__": key}
            for member in range(ends[row], ends[row + 1]):
                offset = offsets[member]
                sample[names[extensions[member]]] = mapped[offset : offset + sizes[member]]
            samples.append(sample)
        return samples

    def close(self) -> None:
        self._mapped = b""


def split_name(name: str) -> tuple[str, str]:
    """Return the key and the extension of a member; both are empty if it has none.

    The same as webdataset's ``^((?:.*/|)[^.]+)[.]([^/]*)$``, which takes hours for a hostile name of 16 MiB.
    """
    folder, slash, last = name.rpartition("/")
    stem, dot, extension = last.partition(".")
    if not dot or not (stem or slash):
        return "", ""
    if not stem and "." in folder.rpartition("/")[2]:
        return "", ""  # a hidden file belongs to its folder, whose name is then the last part of the key
    return folder + slash + stem, extension.lower()


def _group(mapped: Mapped, name: str) -> RowIndex:
    """Build the row index: of each sample its key and where its members end, of each member its name and place."""
    import numpy as np

    keys: list[bytes] = []
    ends: list[int] = [0]
    places: list[tuple[int, int, int]] = []
    extensions: dict[str, int] = {}
    current, seen = None, set[str]()
    for member in members(mapped, source=name):
        key, extension = split_name(member.name)
        if not key or _SKIPPED.match(member.name):
            continue
        if key != current:
            current, seen = key, {"__key__"}
            keys.append(key.encode("utf-8", "surrogateescape"))
            ends.append(len(places))
        if extension in seen:
            raise ShardError(
                f"{name}: the sample {key!r} has two members named {extension!r}",
                hint="give each sample a key of its own",
            )
        seen.add(extension)
        places.append((extensions.setdefault(extension, len(extensions)), member.offset, member.size))
        ends[-1] = len(places)
    columns = np.array(places, np.int64).reshape(-1, 3)
    arrays: dict[str, NDArray[Any]] = {
        "keys": np.frombuffer(b"".join(keys), np.uint8),
        "key_end": np.cumsum([0, *map(len, keys)], dtype=np.int64),
        "member_end": np.array(ends, np.int64),
        "extension": np.ascontiguousarray(columns[:, 0], np.int32),
        "offset": np.ascontiguousarray(columns[:, 1]),
        "size": np.ascontiguousarray(columns[:, 2]),
    }
    return RowIndex(arrays, {"extensions": json.dumps(list(extensions))})
