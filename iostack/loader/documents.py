"""Token shards as streams of permuted documents, cut into sequences: the order is arithmetic, once lengths are known.

shard, epoch ──document bounds, permute by key──> stream of documents ──cut at phase + row * seq_len──> runs of tokens
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from iostack.corpus.contracts import DocumentShardReader, ShardReader
from iostack.errors import FormatError, ShardError
from iostack.loader.buffers import Buffers
from iostack.loader.pieces import RowWriter, RunRows, Streams, Tokens
from iostack.loader.planning import PlannedSource
from iostack.loader.reading import Reading
from iostack.loader.schedule import Draws, Int64s
from iostack.loader.sequences import Fill
from iostack.loader.tokens import TokenSource, locate
from iostack.plan.identity import row_identities
from iostack.plan.keyed import derive_key, permutation
from iostack.plan.packing import cut
from iostack.plan.sequences import sequence_starts

_DOCUMENT_ORDER = 10
"""Purpose of keys; see ``iostack.plan.indexed``."""
_RUNS_KEPT = 16

Key = tuple[int, int]
"""(epoch, shard)"""


class DocumentSource(TokenSource):
    """One corpus of token shards, as a source of sequences of permuted documents.

    Besides the maps it keeps 16 bytes for each document of the shards that its lanes read.
    """

    def __init__(self, source: PlannedSource, reading: Reading) -> None:
        super().__init__(source, reading)
        self._live = LiveDocuments(self._permuted)

    def plan(self, draws: Draws) -> Fill:
        """Return what gathers the documents of the drawn sequences into blocks."""
        located = locate(self._plan, self.residency, draws)
        starts = sequence_starts(self.tokens, self.seq_len, self.seed, located.epochs, located.shards, located.rows)
        keys = list(zip(located.epochs.tolist(), located.shards.tolist(), strict=True))
        shards, numbers = np.unique(located.shards, return_inverse=True)
        streams = Streams([self._map(shard) for shard in shards.tolist()], self.seq_len + 1)
        runs = self._live.runs(keys, starts, numbers, streams)
        identities = row_identities(self.number, located.shards, located.rows)
        return partial(_fill, RowWriter(runs, marks=True), identities)

    def _permuted(self, key: Key) -> tuple[Int64s, Int64s]:
        """Return where the documents of a shard begin in it, and their lengths, in the order of an epoch."""
        epoch, shard = key
        reader = self.residency.reader(shard)
        _, bounds = read_documents(reader, self.residency.corpus.shard_name(shard))
        order = permutation(derive_key(self.seed, _DOCUMENT_ORDER, epoch, shard), len(bounds) - 1)
        return bounds[order], np.diff(bounds)[order]

    def close(self) -> None:
        """Stop fetching, and let go of the maps and documents."""
        super().close()
        self._live = LiveDocuments(self._permuted)


def _fill(writer: RowWriter, identities: Int64s, part: slice, places: Int64s, buffers: Buffers) -> None:
    buffers.identities[places] = identities[part]
    writer.write(part, places, buffers)


def read_documents(reader: ShardReader, name: str) -> tuple[Tokens, Int64s]:
    """Return the tokens of a shard, and where each document begins in them; the end of the last is theirs.

    Raises:
        FormatError: the format knows no documents. ShardError: they do not cover the tokens.
    """
    if not isinstance(reader, DocumentShardReader):
        raise FormatError(f"{name}: its format does not tell documents apart", hint='use packing="none"')
    bounds = reader.document_bounds()
    if not len(bounds) or bounds[0] != 0 or bounds[-1] != len(reader.tokens) or (bounds[1:] < bounds[:-1]).any():
        raise ShardError(
            f"{name}: its documents do not cover its {len(reader.tokens)} tokens", hint="copy or write the shard again"
        )
    return reader.tokens, bounds


@dataclass
class _Table:
    """Where the documents of one shard in one epoch stand: in the arrays of ``LiveDocuments``, and on its axis."""

    first: int
    num_documents: int
    begin: int
    last_used: int = 0


class LiveDocuments:
    """The permuted documents of all shards being read, end to end on one axis, so that rows of all are found at once.

    ``permuted`` returns (begin in its shard, length) of the documents of a shard in an epoch. Tables that were not used
    lately make room for others.
    """

    def __init__(self, permuted: Callable[[Key], tuple[Int64s, Int64s]]) -> None:
        self._permuted = permuted
        self._tables: dict[Key, _Table] = {}
        self._begins = np.empty(0, np.int64)
        self._bounds = np.zeros(1, np.int64)
        self._num_documents = 0
        self._clock = 0

    def runs(self, keys: list[Key], starts: Int64s, numbers: Int64s, streams: Streams) -> RunRows:
        """Return the rows that begin at token ``starts`` of the streams ``keys``; the tokens are in arrays ``numbers``."""
        self._clock += 1
        width = len(streams.arrays[-1])
        for key in dict.fromkeys(keys):
            table = self._tables.get(key) or self._add(key)
            table.last_used = self._clock
        begins = np.asarray([self._tables[key].begin for key in keys], np.int64)
        pieces = cut(self._bounds[: self._num_documents + 1], begins + starts, width)
        return RunRows(
            streams,
            np.repeat(numbers, pieces.counts),
            self._begins[pieces.documents] + pieces.offsets,
            pieces.lengths,
            pieces.counts,
        )

    def _add(self, key: Key) -> _Table:
        begins, lengths = self._permuted(key)
        if self._num_documents + len(begins) > len(self._begins):
            self._make_room(len(begins))
        first, stop = self._num_documents, self._num_documents + len(begins)
        begin = int(self._bounds[first])
        self._begins[first:stop] = begins
        self._bounds[first + 1 : stop + 1] = begin + np.cumsum(lengths)
        self._num_documents = stop
        table = self._tables[key] = _Table(first, len(begins), begin)
        return table

    def _make_room(self, needed: int) -> None:
        """Drop the tables that no recent run used, and move the others to arrays that are half empty."""
        old_begins, old_bounds = self._begins, self._bounds
        self._tables = {key: table for key, table in self._tables.items() if table.last_used > self._clock - _RUNS_KEPT}
        kept = sum(table.num_documents for table in self._tables.values())
        self._begins = np.empty(2 * (kept + needed), np.int64)
        self._bounds = np.zeros(2 * (kept + needed) + 1, np.int64)
        self._num_documents = 0
        for table in self._tables.values():
            old, old_begin = table.first, table.begin
            table.first, table.begin = self._num_documents, int(self._bounds[self._num_documents])
            stop = table.first + table.num_documents
            self._begins[table.first : stop] = old_begins[old : old + table.num_documents]
            moved = old_bounds[old + 1 : old + table.num_documents + 1] - old_begin + table.begin
            self._bounds[table.first + 1 : stop + 1] = moved
            self._num_documents = stop
