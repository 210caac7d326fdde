"""Format "arrow": Arrow IPC files and streams, Feather 2, and the folders that Hugging Face datasets saves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath

from iostack import hookimpl
from iostack.cache.residency import Unpacking
from iostack.corpus.contracts import Columns, Counts, Format, ObjectInfo, Origin, Shard, ShardFiles, ShardReader
from iostack.errors import FormatError

_SUFFIXES = (".arrow", ".feather", ".ipc", ".arrows")


@hookimpl
def iostack_formats() -> Sequence[Format]:
    return [Arrow()]


class Arrow:
    """Files are mapped where they are; those with compressed buffers or dictionaries are unpacked into the cache."""

    name = "arrow"
    holds_tokens = False
    is_compressed = False

    def find_shards(self, objects: Sequence[ObjectInfo]) -> Sequence[Shard]:
        saved = {str(PurePosixPath(info.path).parent) for info in objects if _name(info) == "state.json"}
        if splits := [info for info in objects if _name(info) == "dataset_dict.json"]:
            names = sorted({folder for folder in saved if folder != "."})
            raise FormatError(
                f"{splits[0].path}: a saved DatasetDict with the splits {', '.join(names)}",
                hint=f"open the folder of one split, such as URI/{names[0] if names else 'train'}",
            )
        return [Shard(info) for info in objects if info.path.lower().endswith(_SUFFIXES) and _is_data(info, saved)]

    def count(self, shard: Shard, origin: Origin) -> Counts | None:
        from iostack.corpus.arrow_messages import messages, read_schema
        from iostack.corpus.arrow_types import kind_of
        from iostack.corpus.mapping import map_shard

        if (local := origin.local_path(shard.object.path)) is None:
            return None
        name = f"{origin.uri} {shard.object.path}"
        mapped = map_shard(local, name=name)
        kinds = {field.name: kind_of(field.type) for field in read_schema(mapped, name=name)}
        return Counts(sum(each.num_rows for each in messages(mapped, name=name) if each.is_batch), kinds=kinds)

    def unpacking(self, columns: Columns) -> Unpacking:
        from iostack.corpus.arrow_unpack import arrow_batches, arrow_needs_unpacking, unpacking

        return unpacking("arrow 1", columns, is_needed=arrow_needs_unpacking, batches=arrow_batches)

    def open(self, files: ShardFiles) -> ShardReader:
        from iostack.corpus.arrow_reader import open_arrow

        return open_arrow(files)


def _name(info: ObjectInfo) -> str:
    return info.path.rpartition("/")[2]


def _is_data(info: ObjectInfo, saved: set[str]) -> bool:
    """Return whether a file holds data: beside a state.json only data-*.arrow does, the others are caches of datasets."""
    return str(PurePosixPath(info.path).parent) not in saved or _name(info).startswith("data-")
