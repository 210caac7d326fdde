"""Format "litdata": chunks ``chunk-*.bin`` that litData's ``optimize`` wrote, with the ``index.json`` beside them.

Chunks of the ``TokensLoader`` are token streams, whose documents are the items; all others hold trees of values.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from iostack import hookimpl
from iostack.corpus.contracts import Counts, Format, ObjectInfo, Origin, Sample, Shard, ShardFiles, ShardReader
from iostack.corpus.litdata_chunks import arrow_rows, damaged, is_framed, offsets_of, unpack_frames, unpack_item
from iostack.corpus.mapping import Mapped, map_shard
from iostack.corpus.origins import object_uri
from iostack.corpus.row_index import load_or_build
from iostack.corpus.shared_index import Fields, SharedIndexes
from iostack.errors import FormatError, SampleError, ShardError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_INDEX = "index.json"
_NAME = re.compile(r"(?:.*/)?chunk-[^/]*?(?P<packed>\.zstd(?::\d+)?)?\.bin")
_ZSTD = b"\x28\xb5\x2f\xfd"
_MAX_CHUNK_BYTES = 1 << 40
_MAX_ITEMS = (1 << 32) // 4


@hookimpl
def iostack_formats() -> Sequence[Format]:
    return [LitData()]


@dataclass(frozen=True)
class Chunk:
    """What the index says of one chunk, uncompressed; ``tokens`` is None for trees of values."""

    items: int
    bytes: int
    tokens: int | None

    def check_size(self, found: int, name: str) -> None:
        """Compare the size with that of the file.

        Raises:
            ShardError: it is another one.
        """
        if found != self.bytes:
            raise damaged(name, f"{found:,} bytes, {_INDEX} says {self.bytes:,}: truncated or damaged")


@dataclass(frozen=True)
class Index:
    """A parsed ``index.json``; ``spec`` is the description of the tree."""

    chunks: dict[str, Chunk]
    data_format: tuple[str, ...]
    spec: str
    items_are_packed: bool


class LitData:
    """Chunks ``chunk-*.bin`` and ``chunk-*.zstd.bin``; a plain one is taken before its compressed form."""

    name = "litdata"
    holds_tokens = False
    holds_documents = True

    def __init__(self) -> None:
        self._indexes = SharedIndexes(_parse)
        self._listed: frozenset[str] | None = None
        self._complete: set[ObjectInfo] = set()

    def find_shards(self, objects: Sequence[ObjectInfo]) -> Sequence[Shard]:
        megatron = {info.path[:-4] for info in objects if info.path.endswith(".idx")}
        named = [(info, match) for info in objects if (match := _NAME.fullmatch(info.path))]
        named = [(info, match) for info, match in named if info.path[:-4] not in megatron]
        indexes = {str(PurePosixPath(i.path).parent): i for i in objects if PurePosixPath(i.path).name == _INDEX}
        plain = {info.path for info, match in named if not match["packed"]}
        found = []
        for info, match in named:
            if match["packed"] and _plain_name(info.path) in plain:
                continue
            index = indexes.get(str(PurePosixPath(info.path).parent))
            if index is None:
                raise FormatError(
                    f"{info.path} has no {_INDEX} beside it",
                    hint="copy the missing file, or open the folder that holds both",
                )
            found.append(Shard(info, (index,), "zstd" if match["packed"] else ""))
        self._listed = frozenset(_plain_name(shard.object.path) for shard in found)
        return found

    def count(self, shard: Shard, origin: Origin) -> Counts:
        name = object_uri(origin.uri, shard.object.path)
        chunk = self._chunk(self._indexes.remote(shard.companions[0], origin), shard, name)
        if not shard.compression:  # of what is compressed the index says the size before alone
            chunk.check_size(shard.object.bytes, name)
        return Counts(chunk.items, chunk.tokens)

    def open(self, files: ShardFiles) -> ShardReader:
        index = self._indexes.local(files)
        chunk = self._chunk(index, files.shard, files.name)
        mapped = map_shard(files.path, name=files.name)
        chunk.check_size(len(mapped), files.name)
        items = _items(files, mapped, chunk, index)
        if chunk.tokens is not None:
            return TokensReader(files.name, items, chunk, index)
        table = arrow_rows(mapped, items.end, chunk.items, files.name)
        return TableReader(files.name, table) if table is not None else TreeReader(files, items, chunk, index)

    def _chunk(self, index: Index, shard: Shard, name: str) -> Chunk:
        info = shard.companions[0]
        folder = PurePosixPath(info.path).parent
        if self._listed is not None and info not in self._complete:
            if missing := [each for each in index.chunks if str(folder / each) not in self._listed]:
                raise ShardError(
                    f"{name.removesuffix(shard.object.path)}{info.path} names {missing[0][:200]}, which is not there"
                    f" ({len(missing):,} missing)",
                    hint="copy the missing chunks",
                )
            self._complete.add(info)
        chunk = index.chunks.get(PurePosixPath(_plain_name(shard.object.path)).name)
        if chunk is None:
            raise ShardError(f"{name}: {info.path} does not name it", hint="remove it, or copy its own index")
        return chunk


def _plain_name(path: str) -> str:
    return re.sub(r"\.zstd(?::\d+)?\.bin$", ".bin", path)


def _parse(index: dict[str, Any], source: str) -> Index:
    from iostack.corpus.values.litdata import flat_dtype

    if index.get("config") is None:
        raise FormatError(f"{source}: has no config: it is no index of litData's")
    fields, config = Fields(index, source), Fields(index["config"], f"{source}: config")
    if config.get("encryption"):
        raise FormatError(f"{source}: the chunks are encrypted", hint="write them again without encryption")
    loader = config.optional_text("item_loader")
    if loader not in (None, "PyTreeLoader", "TokensLoader"):
        raise FormatError(f"{source}: chunks of litData's {loader} are not read")
    compression, level = config.optional_text("compression"), config.optional_text("compression_level")
    if compression is not None and compression.partition(":")[0] != "zstd":
        raise FormatError(f"{source}: the chunks are compressed as {compression[:40]!r}, only zstd is known")
    data_format = tuple(config.listed("data_format"))
    if not all(isinstance(each, str) for each in data_format):
        raise config.bad("data_format holds more than names")
    found = [Fields(each, f"{source}: chunk {number}") for number, each in enumerate(fields.listed("chunks"))]
    is_tokens = loader == "TokensLoader" or (loader is None and any(each.get("dim") is not None for each in found))
    try:
        dtype = flat_dtype(data_format[0]) if is_tokens and len(data_format) == 1 else None
    except ValueError as error:
        raise config.bad(str(error)) from error
    if is_tokens and (dtype is None or dtype.kind not in "iu"):
        raise FormatError(f"{source}: its tokens are stored as {data_format!r}, not as integers"[:300])
    chunks: dict[str, Chunk] = {}
    for each in found:
        name = _plain_name(each.text("filename"))
        if "/" in name or not _NAME.fullmatch(name) or name in chunks:
            raise each.bad(f"the name {name[:200]!r} is no chunk's, or another one's")
        num_bytes = each.number("chunk_bytes", limit=_MAX_CHUNK_BYTES)
        items = each.number("chunk_size", limit=_MAX_ITEMS)
        tokens = None
        if dtype is not None:
            tokens = 0 if each.get("dim") is None else each.number("dim", limit=_MAX_CHUNK_BYTES)
        chunks[name] = Chunk(items, num_bytes, tokens)
    return Index(
        chunks, data_format, config.optional_text("data_spec") or "", compression is not None and level == "sample"
    )


@dataclass(frozen=True)
class _Items:
    """The bytes of all items, and where each begins; ``packed`` ones are zstd frames."""

    data: Mapped | memoryview
    offsets: NDArray[Any]
    packed: bool

    @property
    def end(self) -> int:
        return int(self.offsets[-1])


def _items(files: ShardFiles, mapped: Mapped, chunk: Chunk, index: Index) -> _Items:
    if not is_framed(mapped):
        return _Items(mapped, offsets_of(mapped, chunk.items, files.name), index.items_are_packed)
    # A shuffled row would cost the whole frame around it, so all are decompressed once, like a compressed shard.
    build = partial(unpack_frames, mapped, chunk.items, files.name)
    unpacked = load_or_build(files.index, made_by="litdata frames 1", shard_bytes=len(mapped), build=build)
    return _Items(unpacked.arrays["items"].data, unpacked.arrays["offset"], False)


class TreeReader:
    """Items that are trees of values: u32 sizes of the leaves, then the leaves."""

    def __init__(self, files: ShardFiles, items: _Items, chunk: Chunk, index: Index) -> None:
        from iostack.corpus.values.litdata import decoder
        from iostack.corpus.values.pytree import parse_tree

        self._name, self._items = files.name, items
        self.counts = Counts(chunk.items)
        try:
            self._tree = parse_tree(index.spec)
            if len(self._tree.columns) != len(index.data_format):
                raise ValueError(f"a tree of {len(self._tree.columns)} leaves, {len(index.data_format)} are stored")
            self._decoders = [
                decoder(kind, column, allow_pickle=files.allow_pickle, source=files.name)
                for kind, column in zip(index.data_format, self._tree.columns, strict=True)
            ]
        except ValueError as error:
            raise ShardError(f"{files.name}: {files.shard.companions[0].path} describes {error}") from error
        self._sizes = struct.Struct(f"<{len(self._decoders)}I")

    def read(self, rows: Sequence[int]) -> Sequence[Sample | Exception]:
        import numpy as np

        wanted = np.asarray(rows, np.int64)
        starts, stops = self._items.offsets[wanted].tolist(), self._items.offsets[wanted + 1].tolist()
        return [self._sample(*place) for place in zip(wanted.tolist(), starts, stops, strict=True)]

    def _sample(self, row: int, start: int, stop: int) -> Sample | Exception:
        from iostack.corpus.values.common import BAD_VALUE

        data, leaves, number = self._items.data, [], -1
        try:
            # litData leaves some unpacked all the same; none is so large that its first leaf's size looks like zstd.
            if self._items.packed and data[start : start + 4] == _ZSTD:
                data = unpack_item(bytes(data[start:stop]))
                start, stop = 0, len(data)
            at = start + self._sizes.size
            if at > stop:
                raise ValueError("it is cut short")
            for number, size in enumerate(self._sizes.unpack_from(data, start)):
                if at + size > stop:
                    raise ValueError("it runs beyond the item")
                leaves.append(self._decoders[number](bytes(data[at : at + size])))
                at += size
            if at != stop:
                raise ValueError(f"{stop - at:,} bytes more than its leaves")
        except BAD_VALUE as error:
            column = f": column {self._tree.columns[number]!r}" if number >= 0 else ""
            return SampleError(f"{self._name}: row {row:,}{column}: {error}", hint="write the chunk again without it")
        return self._tree.sample(leaves)

    def close(self) -> None:
        self._items = _Items(b"", self._items.offsets[:0], False)


class TableReader:
    """Rows of the Arrow table that litData adds to chunks of nested rows."""

    def __init__(self, name: str, table: Any) -> None:
        self._name, self._table = name, table
        self.counts = Counts(table.num_rows)

    def read(self, rows: Sequence[int]) -> Sequence[Sample | Exception]:
        return [self._sample(row) for row in rows]

    def _sample(self, row: int) -> Sample | Exception:
        try:
            [sample] = self._table.slice(row, 1).to_pylist()
        except (ValueError, KeyError, TypeError, OverflowError, OSError) as error:  # text that is no UTF-8, odd types
            return SampleError(f"{self._name}: row {row:,}: {error}", hint="write the chunk again without it")
        return dict(sample)

    def close(self) -> None:
        self._table = self._table.slice(0, 0)


class TokensReader:
    """Items of token ids, back to back: one stream."""

    def __init__(self, name: str, items: _Items, chunk: Chunk, index: Index) -> None:
        import numpy as np

        from iostack.corpus.values.litdata import flat_dtype

        dtype = np.dtype(flat_dtype(index.data_format[0]))
        first, end = int(items.offsets[0]), items.end
        marks = items.offsets.astype(np.int64) - first
        if (marks % dtype.itemsize).any() or end - first != (chunk.tokens or 0) * dtype.itemsize:
            raise damaged(name, f"{end - first:,} bytes of tokens, {_INDEX} says {chunk.tokens:,} {dtype.name}")
        self._starts = marks // dtype.itemsize
        self.tokens: NDArray[np.integer[Any]] = np.frombuffer(items.data, dtype, chunk.tokens or 0, first)
        self.counts = Counts(chunk.items, chunk.tokens)

    def document_bounds(self) -> NDArray[np.int64]:
        bounds: NDArray[np.int64] = self._starts
        return bounds

    def read(self, rows: Sequence[int]) -> Sequence[Sample | Exception]:
        import numpy as np

        wanted = np.asarray(rows, np.int64)
        starts, stops = self._starts[wanted].tolist(), self._starts[wanted + 1].tolist()
        return [{"tokens": self.tokens[start:stop]} for start, stop in zip(starts, stops, strict=True)]

    def close(self) -> None:
        self.tokens = self.tokens[:0]
