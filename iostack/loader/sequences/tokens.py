"""Sequences from token streams: one gather from mapped shards into the rows of a block, no other work per sample."""

from __future__ import annotations

from functools import partial
from typing import cast

import numpy as np

from iostack.corpus.contracts import TokenShardReader
from iostack.errors import ShardError
from iostack.loader.ahead.residency import Residency
from iostack.loader.order.planned import PlannedSource
from iostack.loader.order.schedule import Draws, Int64s
from iostack.loader.order.token_counts import token_counts
from iostack.loader.reading import Reading
from iostack.loader.sequences.batches import Fill
from iostack.loader.sequences.buffers import Buffers
from iostack.loader.sequences.maps import Maps, Tokens
from iostack.loader.sources import IndexedSource
from iostack.plan.identity import row_identities
from iostack.plan.indexed import IndexedPlan, Rows
from iostack.plan.sequences import sequence_starts


class TokenSource(IndexedSource):
    """One corpus of token shards, as a source of sequences of ``seq_len`` + 1 tokens."""

    def __init__(self, source: PlannedSource, reading: Reading) -> None:
        super().__init__(Residency(source.corpus, reading.lookahead_bytes, reading.meter, reading.in_flight))
        plan = reading.plan
        assert plan.seq_len is not None
        self.tokens = token_counts(source.corpus)
        self.number = source.number
        self.seq_len = plan.seq_len
        self.seed = source.seed
        self._plan = source.indexed_plan(plan.lanes)
        self.maps = Maps(partial(_open_map, self.residency, self.tokens), len(self.tokens), self.seq_len + 1)

    def plan(self, draws: Draws) -> Fill:
        """Return what gathers the drawn sequences into blocks."""
        located = locate(self._plan, self.residency, draws)
        starts = sequence_starts(self.tokens, self.seq_len, self.seed, located.epochs, located.shards, located.rows)
        identities = row_identities(self.number, located.shards, located.rows)
        return partial(self._fill, located.shards, starts, identities)

    def _fill(
        self, shards: Int64s, starts: Int64s, identities: Int64s, part: slice, places: Int64s, buffers: Buffers
    ) -> None:
        buffers.identities[places] = identities[part]
        self.maps.gather(shards[part], starts[part], places, buffers.tokens)

    def close(self) -> None:
        """Stop fetching, and let go of the maps."""
        super().close()
        self.maps.clear()


def _open_map(residency: Residency, num_tokens: Int64s, shard: int) -> Tokens:
    reader = cast(TokenShardReader, residency.reader(shard))
    if len(reader.tokens) != num_tokens[shard]:
        raise ShardError(
            f"{residency.corpus.shard_name(shard)} holds {len(reader.tokens)} tokens, but the manifest says"
            f" {num_tokens[shard]}",
            hint="run iostack index on the corpus",
        )
    return reader.tokens


def locate(plan: IndexedPlan, residency: Residency, draws: Draws) -> Rows:
    """Return where the drawn samples stand; starts fetching what their lanes read next."""
    times, lanes = np.divmod(draws.positions, plan.lanes)
    residency.want_windows(plan, lanes, times)
    return plan.locate(draws.positions)
