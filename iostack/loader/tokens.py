"""Sequences from token streams: one gather from mapped shards into the rows of a block, no other work per sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from iostack.corpus.contracts import TokenShardReader
from iostack.corpus.corpus import Corpus
from iostack.errors import PlanError, ShardError
from iostack.loader.residency import Residency
from iostack.loader.schedule import Int64s, LaneDraws
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

    def fill(self, draws: Sequence[LaneDraws], out: NDArray[np.int64], identities: Int64s) -> None:
        """Write the sequences of ``draws`` into their places: rows of ``out`` (int64[n, seq_len + 1]) and identities."""
        places, located = locate_draws(self.plan, self.residency, draws, len(out))
        starts = sequence_starts(
            self.tokens, self.seq_len, self.seed, located.epochs, located.shards, located.rows
        ).tolist()
        identities[places] = row_identities(self.number, located.shards, located.rows)
        width = self.seq_len + 1
        rows = out if isinstance(places, slice) else (out[place] for place in places.tolist())
        maps = self._maps
        for row, shard, start in zip(rows, located.shards.tolist(), starts):
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


def locate_draws(
    plan: IndexedPlan, residency: Residency, draws: Sequence[LaneDraws], size: int
) -> tuple[Int64s | slice, Rows]:
    """Return where the drawn samples stand, and the places of a block of ``size`` rows they fill (a slice for all)."""
    epochs, axis = np.empty(size, np.int64), np.empty(size, np.int64)
    whole = True
    for draw in draws:
        residency.want_window(plan, draw.lane, int(draw.times[0]))
        if isinstance(draw.places, slice):
            plan.lane_rows(draw.lane, draw.times, epochs[draw.places], axis[draw.places])
            continue
        whole = False
        lane_epochs, lane_axis = np.empty_like(draw.times), np.empty_like(draw.times)
        plan.lane_rows(draw.lane, draw.times, lane_epochs, lane_axis)
        epochs[draw.places], axis[draw.places] = lane_epochs, lane_axis
    if whole:
        return slice(None), plan.rows_of(epochs, axis)
    places = np.concatenate([cast(Int64s, draw.places) for draw in draws])
    return places, plan.rows_of(epochs[places], axis[places])


def _token_counts(corpus: Corpus) -> Int64s:
    if corpus.manifest.tokens is None:
        raise PlanError(
            f"{corpus.uri}: the number of tokens of some shards is not known", hint="run: iostack index URI"
        )
    return corpus.manifest.tokens
