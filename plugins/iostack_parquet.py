"""Format "parquet": each shard is unpacked once into the cache, with the chosen columns, as Arrow that can be mapped."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial

from iostack import hookimpl
from iostack.cache.residency import Unpacking
from iostack.corpus.contracts import Columns, Counts, Format, ObjectInfo, Origin, Shard, ShardFiles, ShardReader
from iostack.errors import FormatError

_SUFFIXES = (".parquet", ".parq", ".pq")
_SPLIT = re.compile(r"(?P<folder>.*/)?(?P<split>[^/]+?)-\d{5}-of-\d{5}(-[0-9a-f]+)?\.parquet")
_SPLITS = {"train", "test", "validation", "valid", "val", "dev", "eval"}


@hookimpl
def iostack_formats() -> Sequence[Format]:
    return [Parquet()]


class Parquet:
    """Files ``.parquet``; counts come from their footers by one or two small reads."""

    name = "parquet"
    holds_tokens = False
    is_compressed = True

    def find_shards(self, objects: Sequence[ObjectInfo]) -> Sequence[Shard]:
        shards = [Shard(info) for info in objects if info.path.lower().endswith(_SUFFIXES)]
        _refuse_splits([shard.object.path for shard in shards])
        return shards

    def count(self, shard: Shard, origin: Origin) -> Counts | None:
        from iostack.corpus.parquet_footer import kinds_of, read_footer

        name = f"{origin.uri} {shard.object.path}"
        read = partial(origin.read, shard.object.path)
        footer = read_footer(read, shard.object.bytes, name)
        return Counts(footer.num_rows, kinds=kinds_of(footer, name))

    def unpacking(self, columns: Columns) -> Unpacking:
        from iostack.corpus.arrow_unpack import unpacking
        from iostack.corpus.parquet_footer import parquet_batches

        return unpacking("parquet 1", columns, is_needed=_always, batches=parquet_batches)

    def open(self, files: ShardFiles) -> ShardReader:
        from iostack.corpus.arrow_reader import open_arrow

        return open_arrow(files)


def _refuse_splits(paths: Sequence[str]) -> None:
    """Refuse a folder that holds several splits side by side, as the hub lays them out: train is not to read test."""
    found: dict[str, dict[str, str]] = {}
    for path in paths:
        if named := _SPLIT.fullmatch(path):
            found.setdefault(named["folder"] or "", {}).setdefault(named["split"], path)
    for folder, splits in found.items():
        if len(splits) > 1 and not splits.keys().isdisjoint(_SPLITS):
            one = "train" if "train" in splits else min(splits)
            raise FormatError(
                f"{folder or './'} holds the splits {', '.join(sorted(splits))}",
                hint=f"open one of them, in quotes: 'URI/{folder}{one}-*'",
            )


def _always(_: object) -> bool:
    return True
