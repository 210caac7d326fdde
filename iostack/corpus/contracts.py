"""What storage, formats, transforms and tokenizers promise: the protocols that data plugins implement.

URI ──Origin.list──> [ObjectInfo] ──Format.find_shards──> [Shard] ──cache──> local files ──Format.open──> ShardReader
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from iostack.cache.residency import Unpacking

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


Sample = dict[str, Any]
"""One row of a shard: column name -> value (bytes, str, number, array, nested lists and dicts of these)."""

Columns = tuple[str, ...] | None
"""The columns that are read, in this order; None: all."""

Filter = Callable[[Sample], bool]
"""Says whether a sample is kept; must be a pure function of its argument. An exception makes the sample bad."""

Transform = Callable[[Sample], Sample]
"""Maps one sample to one sample; must be a pure function of its argument. An exception makes the sample bad."""


@runtime_checkable
class KeyedTransform(Protocol):
    """A transform that draws at random: the loader calls ``with_key`` instead of the transform itself.

    ``key`` is 64 bits, a pure function of (seed, place in the list of transforms, epoch, shard, row): another one in every
    epoch, and the same on any number of ranks and after resuming. Draw from it alone.
    """

    def __call__(self, sample: Sample) -> Sample:
        """Do without drawing: what evaluation and a map-style dataset want."""
        ...

    def with_key(self, sample: Sample, key: int) -> Sample:
        """Return what becomes of the sample under this key."""
        ...


@dataclass(frozen=True)
class ObjectInfo:
    """One object of an origin. ``path`` is relative to the corpus, with forward slashes; ``etag`` may be empty."""

    path: str
    bytes: int
    etag: str = ""


class Origin(Protocol):
    """The storage behind a URI. Methods are thread-safe; errors are ``OriginError`` without credentials."""

    uri: str
    """Where this is, without credentials: good for messages."""

    def list(self) -> Sequence[ObjectInfo]:
        """Return all objects below the URI, sorted by path; the URI of a single object lists that one.

        Raises:
            CorpusNotFoundError: nothing is there.
        """
        ...

    def info(self, path: str) -> ObjectInfo | None:
        """Return what one object is like now, or None if it is not there."""
        ...

    def local_path(self, path: str) -> Path | None:
        """Return the path of an object that is already a local file, else None."""
        ...

    def read(self, path: str, start: int, stop: int) -> bytes:
        """Return the bytes [start, stop) of one object."""
        ...

    def fetch(self, path: str, destination: Path) -> None:
        """Copy one whole object to a new local file."""
        ...

    def write(self, path: str, data: bytes) -> bool:
        """Write one small object atomically; return False where the origin cannot be written to."""
        ...


COMPRESSIONS = {
    ".gz": "gzip",
    ".zst": "zstd",
    ".zstd": "zstd",
    ".bz2": "bz2",
    ".br": "brotli",
    ".snappy": "snappy",
}
"""By suffix, the compressions that the cache undoes."""

OpenOrigin = Callable[[str, Mapping[str, Any]], Origin]


@dataclass(frozen=True)
class Shard:
    """One shard of a corpus: the object that names it, and the objects that it cannot be read without."""

    object: ObjectInfo
    companions: tuple[ObjectInfo, ...] = ()
    compression: str = ""
    """Of the object: empty, or a value of ``COMPRESSIONS``; readers get the decompressed file."""


@dataclass(frozen=True)
class Counts:
    """What a shard holds. ``tokens`` is None except in token streams.

    ``kinds`` says of a shard of columns what each holds, as ``TableReader.kinds`` does, where counting it showed that too.
    """

    samples: int
    tokens: int | None = None
    kinds: Mapping[str, str] | None = field(default=None, compare=False)


@dataclass(frozen=True)
class ShardFiles:
    """The local files of one shard, and where a reader may keep a row index that is built once.

    ``index`` is a file name without suffix, unique to this version of the shard: ``row_index.load_or_build`` keeps an
    index there. Its folder exists if the cache folder can be written to.
    """

    name: str
    """URI of the shard, without credentials, for messages."""
    path: Path
    companions: tuple[Path, ...]
    index: Path
    shard: Shard
    """What these are the files of."""
    allow_pickle: frozenset[str] = frozenset()
    """Columns whose pickled values the user trusts; no other may be unpickled."""
    columns: Columns = None
    """Of a ``TableFormat``: the columns that samples have."""


@runtime_checkable
class ShardReader(Protocol):
    """Random access to the samples of one open shard. Thread-safe: ``read`` may run in several threads at once."""

    counts: Counts

    def read(self, rows: Sequence[int]) -> Sequence[Sample | Exception]:
        """Return the samples of ``rows`` in that order; a bad one is returned as its ``SampleError``, not raised.

        Raises:
            ShardError: the shard as a whole cannot be read.
        """
        ...

    def close(self) -> None:
        """Release files and maps. Arrays handed out before stay valid."""
        ...


@dataclass(frozen=True)
class Slices:
    """Values that lie in one buffer: row i is ``data[starts[i]:stops[i]]``, bytes or the UTF-8 of text, or None.

    ``starts`` and ``stops`` are int64[rows], ``nulls`` is bool[rows] or None where no row is None. That slices lie in the
    buffer, and text is UTF-8, is seen to where they are read.
    """

    data: bytes | mmap.mmap
    starts: NDArray[np.int64]
    stops: NDArray[np.int64]
    nulls: NDArray[np.bool_] | None = None
    is_text: bool = False

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.starts)


Column = Any
"""The values of one column, row by row, in any of these forms:

a list; a NumPy array of one dimension that holds Python's numbers, as int64, float64 or bool; ``Slices`` of a mapped shard; an
array of pyarrow, which stands for what its ``to_pylist`` gives.
"""


@runtime_checkable
class ColumnReader(ShardReader, Protocol):
    """A shard that can give rows as columns, without making a sample of each: batches of samples as they are need none."""

    def read_columns(self, rows: NDArray[np.int64]) -> Mapping[str, Column] | None:
        """Return the values of ``rows`` in that order: those of ``read``, whose samples then have all these columns alike.

        None where that cannot be, or a row is bad: ``read`` is asked then, and tells which. Thread-safe.

        Raises:
            ShardError: the shard as a whole cannot be read.
        """
        ...


@runtime_checkable
class TokenShardReader(ShardReader, Protocol):
    """A shard that is one long stream of tokens; its samples are documents."""

    tokens: NDArray[np.integer[Any]]
    """All tokens, one dimension, in the dtype of the file, mapped read-only."""


@runtime_checkable
class DocumentShardReader(TokenShardReader, Protocol):
    """A stream of tokens that knows where its documents begin, so that they can be packed."""

    def document_bounds(self) -> NDArray[np.int64]:
        """Return where each document begins in ``tokens``, and the end of the last: int64[documents + 1].

        Ascending from 0 to the number of tokens; empty documents have equal bounds. May be computed at each call.

        Raises:
            ShardError: the index is damaged.
        """
        ...


class Format(Protocol):
    """One format of shards. A format whose readers are ``DocumentShardReader`` has ``holds_documents = True`` too."""

    name: str
    holds_tokens: bool
    """Whether readers are ``TokenShardReader`` always; where only those of some corpora are, ``count`` tells by ``tokens``."""

    def find_shards(self, objects: Sequence[ObjectInfo]) -> Sequence[Shard]:
        """Return the shards among ``objects``, by their names alone; nothing is opened. May be empty.

        Raises:
            FormatError: objects that belong together are incomplete.
        """
        ...

    def count(self, shard: Shard, origin: Origin) -> Counts | None:
        """Return the counts of a shard if a few small reads can tell; None if it must be opened and scanned."""
        ...

    def open(self, files: ShardFiles) -> ShardReader:
        """Open one shard; builds its row index if it is not there yet.

        Raises:
            ShardError: truncated, damaged or hostile.
        """
        ...


@runtime_checkable
class TableFormat(Format, Protocol):
    """A format of columns, some of which can be read without the others. Its readers are ``TableReader``."""

    is_compressed: bool
    """Whether shards usually are: text then takes some four times their bytes."""

    def unpacking(self, columns: Columns) -> Unpacking:
        """Return how shards become files that can be mapped, with these columns; ``open`` gets what it made."""
        ...


@runtime_checkable
class TableReader(ShardReader, Protocol):
    """A shard of columns."""

    kinds: Mapping[str, str]
    """What each column holds, in words; shards whose words differ cannot be mixed."""


@runtime_checkable
class IndexedFormat(Format, Protocol):
    """A format that knows files beside its shards which only say what is in them."""

    def find_indexes(self) -> Sequence[ObjectInfo]:
        """Return those among the objects of the last ``find_shards``, by their names alone."""
        ...


class Tokenizer(Protocol):
    """Turns text into token ids. Thread-safe."""

    name: str
    """Names the tokenizer in the plan: two that give different ids must have different names."""
    vocab_size: int
    end_of_text: int
    """Id written after every document."""

    def encode(self, texts: Sequence[str]) -> Sequence[NDArray[np.integer[Any]]]:
        """Return the token ids of each text, without ``end_of_text``."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids; ids that are no text become U+FFFD."""
        ...
