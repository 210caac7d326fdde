"""Sequences from token streams: one gather from mapped shards into the rows of a block, no other work per sample."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from iostack.corpus.contracts import TokenShardReader
from iostack.corpus.corpus import Corpus
from iostack.errors import PlanError, ShardError
from iostack.loader.residency import Residency
from iostack.loader.schedule import Draws, Int64s
from iostack.plan.identity import row_identities
from iostack.plan.indexed import IndexedPlan, Rows
from iostack.plan.sequences import sequence_counts, sequence_starts

_OPEN_MAPS = 1024


class TokenSource:
    """One corpus of token shards, cut into sequences of ``seq_len`` + 1 tokens."""

    def __init__(
        self, corpus: Corpus, plan: IndexedPlan, *, number: int, seq_len: int, seed: int, lookahead_bytes: int
    ) -> None:
        self.tokens = _token_counts(corpus)
        self.number = number
        self.seq_len = seq_len
        self.seed = seed
        self.plan = plan
        self.residency = Residency(corpus, lookahead_bytes)
        self._maps: dict[int, NDArray[np.integer[Any]]] = {}

    def fill(self, draws: Draws, out: NDArray[np.int64], identities: Int64s) -> None:
        """Write the drawn sequences into their places: rows of ``out`` (int64[n, seq_len + 1]) and ``identities``."""
        located = locate(self.plan, self.residency, draws)
        starts = sequence_starts(self.tokens, self.seq_len, self.seed, located.epochs, located.shards, located.rows)
        identities[draws.places] = row_identities(self.number, located.shards, located.rows)
        rows = out if len(draws.places) == len(out) else map(out.__getitem__, draws.places.tolist())
        width = self.seq_len + 1
        maps = self._maps
        for row, shard, start in zip(rows, located.shards.tolist(), starts.tolist(), strict=True):
            mapped = maps.get(shard)
            if mapped is None:
                mapped = self._map(shard)
            row[:] = mapped[start : start + width]

    def close(self) -> None:
        """Stop fetching; forget the maps."""
        self.residency.close()
        self._maps.clear()

    def _map(self, shard: int) -> NDArray[np.integer[Any]]:
        reader = cast(TokenShardReader, self.residency.reader(shard))
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


def token_sequences(corpus: Corpus, seq_len: int) -> Int64s:
    """Return how many sequences of ``seq_len`` each shard gives.

    Raises:
        PlanError: no shard is long enough for one.
    """
    tokens = _token_counts(corpus)
    counts = sequence_counts(tokens, seq_len)
    if not counts.any():
        raise PlanError(
            f"{corpus.uri}: no shard is long enough for one sequence: the longest holds {int(tokens.max(initial=0))}"
            f" tokens, and seq_len {seq_len} needs {seq_len + 1}",
            hint="use a smaller seq_len",
        )
    return counts


def locate(plan: IndexedPlan, residency: Residency, draws: Draws) -> Rows:
    """Return where the drawn samples stand; starts fetching what their lanes read next."""
    times, lanes = np.divmod(draws.positions, plan.lanes)
    residency.want_windows(plan, lanes, times)
    return plan.locate(draws.positions)


def _token_counts(corpus: Corpus) -> Int64s:
    if corpus.manifest.tokens is None:
        raise PlanError(
            f"{corpus.uri}: the number of tokens of some shards is not known", hint=f"run: iostack index {corpus.uri}"
        )
    return corpus.manifest.tokens
