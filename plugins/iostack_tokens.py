"""Format "tokens": Megatron's ``.bin`` (token ids, back to back) with its ``.idx`` (lengths and documents).

Layout of the ``.idx``, little endian, after Megatron-LM's ``indexed_dataset.py``:

    9 bytes  b"MMIDIDX\\0\\0"      u64 version = 1      u8 dtype      u64 sequences S      u64 document marks D
    i32[S]   tokens of each sequence
    i64[S]   byte offset of each sequence in the .bin
    i64[D]   first sequence of each document, and S
    i8[S]    modes; only in multimodal data, ignored
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from iostack import hookimpl
from iostack.corpus.contracts import Counts, Format, ObjectInfo, Origin, Sample, Shard, ShardFiles
from iostack.corpus.mapping import map_shard, map_shard_index
from iostack.errors import FormatError, ShardError
from iostack.lazy import lazy

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_MAGIC = b"MMIDIDX\x00\x00"
_HEADER = struct.Struct("<9sQBQQ")
_DTYPES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
_FLOATS = {6: "float64", 7: "float32"}


@hookimpl
def iostack_formats() -> Sequence[Format]:
    return [Tokens()]


class Tokens:
    """Pairs ``NAME.bin`` and ``NAME.idx``."""

    name = "tokens"
    holds_tokens = True
    holds_documents = True

    def find_shards(self, objects: Sequence[ObjectInfo]) -> Sequence[Shard]:
        indexes = {info.path.removesuffix(".idx"): info for info in objects if _is_index(info.path)}
        streams = {info.path.removesuffix(".bin"): info for info in objects if info.path.endswith(".bin")}
        # A lone .bin among other things may be anything; a lone .idx, or one .bin of many without it, is a loss.
        if indexes or len(streams) == len(objects):
            for stem in sorted(indexes.keys() ^ streams.keys()):
                there, missing = (".bin", ".idx") if stem in streams else (".idx", ".bin")
                raise FormatError(
                    f"{stem}{there} has no {stem}{missing} beside it",
                    hint="copy the missing file, or open the folder that holds both",
                )
            return [Shard(streams[stem], (indexes[stem],)) for stem in sorted(streams)]
        return []

    def count(self, shard: Shard, origin: Origin) -> Counts:
        index = shard.companions[0]
        name = f"{origin.uri} {index.path}"
        header = _read_header(origin.read(index.path, 0, _HEADER.size), index.bytes, shard.object.bytes, name)
        return header.counts

    def open(self, files: ShardFiles) -> TokensReader:
        import numpy as np

        if not files.companions:
            raise ShardError(
                f"{files.name}: the manifest names no .idx for it", hint="write it anew: iostack index URI"
            )
        stream = map_shard(files.path, name=files.name)
        index = map_shard_index(files.companions[0], name=files.name)
        header = _read_header(bytes(index[: _HEADER.size]), len(index), len(stream), files.name)
        return TokensReader(header, np.frombuffer(stream, header.dtype), index, files.name)


def _is_index(path: str) -> bool:
    return path.endswith(".idx") and not path.endswith(".tar.idx")  # the offsets of an archive's samples


@dataclass(frozen=True)
class _Header:
    dtype: np.dtype[Any]
    num_sequences: int
    num_marks: int
    num_tokens: int

    @property
    def has_documents(self) -> bool:
        """Whether anybody marked documents; a writer that never did leaves one mark, and sequences stand for them."""
        return self.num_marks > 1

    @property
    def counts(self) -> Counts:
        return Counts(self.num_marks - 1 if self.has_documents else self.num_sequences, self.num_tokens)


def _read_header(data: bytes, index_bytes: int, stream_bytes: int, name: str) -> _Header:
    """Check the header against the sizes of both files, before anything is allocated."""
    import numpy as np

    if len(data) < _HEADER.size or not data.startswith(_MAGIC):
        raise ShardError(f"{name}: the .idx is no Megatron index", hint="write the shard again")
    _, version, code, num_sequences, num_marks = _HEADER.unpack(data[: _HEADER.size])
    if version != 1:
        raise ShardError(f"{name}: the .idx is of version {version}, only 1 is known")
    if code not in _DTYPES:
        raise ShardError(
            f"{name}: the .idx holds {_FLOATS.get(code, f'values of unknown kind {code}')}, not token ids",
            hint="token ids are uint8, int8, int16, uint16, int32 or int64",
        )
    expected = _HEADER.size + 12 * num_sequences + 8 * num_marks
    if index_bytes not in (expected, expected + num_sequences):
        raise ShardError(
            f"{name}: the .idx has {index_bytes:,} bytes, its header asks for {expected:,}: truncated or damaged",
            hint="copy or write the shard again",
        )
    dtype = np.dtype(_DTYPES[code])
    if stream_bytes % dtype.itemsize:
        raise _misfit(name, f"{stream_bytes:,} bytes of {dtype.name}")
    return _Header(dtype, num_sequences, num_marks, stream_bytes // dtype.itemsize)


class TokensReader:
    """One shard; rows are documents, ``tokens`` is the whole stream."""

    def __init__(self, header: _Header, tokens: NDArray[np.integer[Any]], index: memoryview, name: str) -> None:
        self.counts = header.counts
        self.tokens = tokens
        self._find_documents = partial(_document_starts, header, index, name)
        self._find_documents()  # checks it; who reads only tokens need not keep 8 bytes per document

    @lazy
    def _starts(self) -> NDArray[np.int64]:
        return self._find_documents()

    def document_bounds(self) -> NDArray[np.int64]:
        return self._find_documents()

    def read(self, rows: Sequence[int]) -> Sequence[Sample | Exception]:
        import numpy as np

        wanted = np.asarray(rows, np.int64)
        starts, stops = self._starts[wanted].tolist(), self._starts[wanted + 1].tolist()
        return [{"tokens": self.tokens[start:stop]} for start, stop in zip(starts, stops, strict=True)]

    def close(self) -> None:
        self.tokens = self.tokens[:0]


def _document_starts(header: _Header, index: memoryview, name: str) -> NDArray[np.int64]:
    """Return where each document starts in tokens, and the end; checks the whole index against the stream."""
    import numpy as np

    count, at = header.num_sequences, _HEADER.size
    lengths = np.frombuffer(index, "<i4", count, at)
    offsets = np.frombuffer(index, "<i8", count, at + 4 * count)
    marks = np.frombuffer(index, "<i8", header.num_marks, at + 12 * count)
    if count and lengths.min() < 0:
        raise _misfit(name, "a sequence of negative length")
    starts = np.zeros(count + 1, np.int64)
    np.cumsum(lengths, dtype=np.int64, out=starts[1:])
    if starts[-1] != header.num_tokens:
        raise _misfit(name, f"{starts[-1]:,} tokens in the .idx, {header.num_tokens:,} in the .bin")
    if not np.array_equal(offsets, starts[:-1] * header.dtype.itemsize):
        raise _misfit(name, "sequences that do not lie back to back")
    if not header.has_documents:
        return starts
    if marks[0] != 0 or marks[-1] != count or (marks[1:] < marks[:-1]).any():
        raise _misfit(name, "documents that do not cover the sequences")
    documents: NDArray[np.int64] = starts[marks]
    return documents


def _misfit(name: str, reason: str) -> ShardError:
    return ShardError(f"{name}: the .idx does not fit the .bin: {reason}", hint="copy or write both files again")
