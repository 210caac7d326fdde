"""Sequences from token streams: one gather from mapped shards into the rows of a block, no other work per sample."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from iostack.corpus.contracts import TokenShardReader
from iostack.errors import ShardError
from iostack.loader.buffers import Buffers
from iostack.loader.planning import PlannedSource
from iostack.loader.reading import Reading
from iostack.loader.residency import Residency
from iostack.loader.schedule import Draws
from iostack.loader.sources import IndexedSource
from iostack.loader.token_counts import token_counts
from iostack.loader.waits import with_origin_s
from iostack.plan.identity import row_identities
from iostack.plan.indexed import IndexedPlan, Rows
from iostack.plan.sequences import sequence_starts

_OPEN_MAPS = 1024


class TokenSource(IndexedSource):
    """One corpus of token shards, as a source of sequences of ``seq_len`` + 1 tokens."""

    def __init__(self, source: PlannedSource, reading: Reading) -> None:
        super().__init__(Residency(source.corpus, reading.lookahead_bytes))
        plan = reading.plan
        assert plan.seq_len is not None
        self.tokens = token_counts(source.corpus)
        self.number = source.number
        self.seq_len = plan.seq_len
        self.seed = source.seed
        self.plan = source.indexed_plan(plan.lanes)
        self._maps: dict[int, NDArray[np.integer[Any]]] = {}

    def fill(self, draws: Draws, buffers: Buffers) -> None:
        """Gather the drawn sequences into the block."""
        out = buffers.tokens
        located = locate(self.plan, self.residency, draws)
        starts = sequence_starts(self.tokens, self.seq_len, self.seed, located.epochs, located.shards, located.rows)
        buffers.identities[draws.places] = row_identities(self.number, located.shards, located.rows)
        rows = out if len(draws.places) == len(out) else map(out.__getitem__, draws.places.tolist())
        width = self.seq_len + 1
        shards = located.shards.tolist()
        maps = {shard: self._map(shard) for shard in set(shards)}
        for row, shard, start in zip(rows, shards, starts.tolist(), strict=True):
            row[:] = maps[shard][start : start + width]

    def close(self) -> None:
        """Stop fetching, and let go of the maps."""
        super().close()
        self._maps.clear()

    def _map(self, shard: int) -> NDArray[np.integer[Any]]:
        mapped = self._maps.get(shard)
        if mapped is not None:
            return mapped
        opened, origin_s = with_origin_s(self.residency.reader, shard)
        self._waited = self._waited.add(origin_s, origin_s)
        reader = cast(TokenShardReader, opened)
        if len(reader.tokens) != self.tokens[shard]:
            raise ShardError(
                f"{self.residency.corpus.shard_name(shard)} holds {len(reader.tokens)} tokens, but the manifest says"
                f" {self.tokens[shard]}",
                hint="run iostack index on the corpus",
            )
        if len(self._maps) >= _OPEN_MAPS:
            self._maps.clear()
        mapped = self._maps[shard] = reader.tokens
        return mapped


def locate(plan: IndexedPlan, residency: Residency, draws: Draws) -> Rows:
    """Return where the drawn samples stand; starts fetching what their lanes read next."""
    times, lanes = np.divmod(draws.positions, plan.lanes)
    residency.want_windows(plan, lanes, times)
    return plan.locate(draws.positions)
