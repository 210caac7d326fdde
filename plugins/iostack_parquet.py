"""Format "parquet": each shard is unpacked once into the cache, with the chosen columns, as Arrow that can be mapped."""

from __future__ import annotations

from collections.abc import Sequence

from iostack import hookimpl
from iostack.cache.residency import Unpacking
from iostack.corpus.contracts import Columns, Counts, Format, ObjectInfo, Origin, Shard, ShardFiles, ShardReader

_SUFFIXES = (".parquet", ".parq", ".pq")


@hookimpl
def iostack_formats() -> Sequence[Format]:
    return [Parquet()]


class Parquet:
    """Files ``.parquet``; counts come from their footers by one or two small reads."""

    name = "parquet"
    holds_tokens = False
    is_compressed = True

    def find_shards(self, objects: Sequence[ObjectInfo]) -> Sequence[Shard]:
        return [Shard(info) for info in objects if info.path.lower().endswith(_SUFFIXES)]

    def count(self, shard: Shard, origin: Origin) -> Counts | None:
        from iostack.corpus.parquet_footer import read_footer

        name = f"{origin.uri} {shard.object.path}"
        return Counts(
            read_footer(
                lambda start, stop: origin.read(shard.object.path, start, stop), shard.object.bytes, name
            ).num_rows
        )

    def unpacking(self, columns: Columns) -> Unpacking:
        from iostack.corpus.arrow_unpack import unpacking
        from iostack.corpus.parquet_footer import parquet_batches

        return unpacking("parquet 1", columns, is_needed=_always, batches=parquet_batches)

    def open(self, files: ShardFiles) -> ShardReader:
        from iostack.corpus.arrow_reader import open_arrow

        return open_arrow(files)


def _always(_: object) -> bool:
    return True
