"""Token shards as streams of permuted documents, cut into sequences: the order is arithmetic, once lengths are known.

shard, epoch ──document bounds, permute by key──> stream of documents ──cut at phase + row * seq_len──> runs of tokens
"""

from __future__ import annotations

from functools import partial

import numpy as np

from iostack.corpus.contracts import DocumentShardReader, ShardReader
from iostack.errors import FormatError, ShardError
from iostack.loader.order.planned import PlannedSource
from iostack.loader.order.schedule import Draws, Int64s
from iostack.loader.reading import Reading
from iostack.loader.sequences.batches import Fill
from iostack.loader.sequences.buffers import Buffers
from iostack.loader.sequences.live_documents import Key, LiveDocuments
from iostack.loader.sequences.pieces import RowWriter, Streams, Tokens
from iostack.loader.sequences.tokens import TokenSource, locate
from iostack.plan.identity import row_identities
from iostack.plan.keyed import derive_key, permutation
from iostack.plan.sequences import sequence_starts

_DOCUMENT_ORDER = 10
"""Purpose of keys; see ``iostack.plan.indexed``."""


class DocumentSource(TokenSource):
    """One corpus of token shards, as a source of sequences of permuted documents.

    Besides the maps it keeps 8 bytes for each document, and 4 for each sequence, of the shards that its lanes read.
    """

    def __init__(self, source: PlannedSource, reading: Reading) -> None:
        super().__init__(source, reading)
        self._live = self._no_documents()

    def plan(self, draws: Draws) -> Fill:
        """Return what gathers the documents of the drawn sequences into blocks."""
        located = locate(self._plan, self.residency, draws)
        codes, numbers = np.unique(located.epochs * len(self.tokens) + located.shards, return_inverse=True)
        epochs, shards = np.divmod(codes, len(self.tokens))
        streams = Streams([self.maps[shard] for shard in shards.tolist()], self.seq_len + 1)
        phases = sequence_starts(self.tokens, self.seq_len, self.seed, epochs, shards, np.zeros_like(shards))
        runs = self._live.runs(
            list(zip(epochs.tolist(), shards.tolist(), strict=True)), phases, numbers, located.rows, streams
        )
        identities = row_identities(self.number, located.shards, located.rows)
        return partial(_fill, RowWriter(runs, marks=True), identities)

    def _permuted(self, key: Key) -> tuple[Int64s, Int64s]:
        """Return where the documents of a shard begin in it, and their lengths, in the order of an epoch."""
        epoch, shard = key
        reader = self.residency.reader(shard)
        _, bounds = read_documents(reader, self.residency.corpus.shard_name(shard))
        order = permutation(derive_key(self.seed, _DOCUMENT_ORDER, epoch, shard), len(bounds) - 1)
        return bounds[order], np.diff(bounds)[order]

    def _no_documents(self) -> LiveDocuments:
        return LiveDocuments(self._permuted, self.seq_len, most_tokens=int(self.tokens.max(initial=0)))

    def close(self) -> None:
        """Stop fetching, and let go of the maps and documents."""
        super().close()
        self._live = self._no_documents()


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
