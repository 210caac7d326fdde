"""How many tokens, and sequences of them, the shards of a corpus hold."""

from __future__ import annotations

from iostack.corpus.corpus import Corpus
from iostack.errors import PlanError
from iostack.loader.order.schedule import Int64s
from iostack.plan.sequences import sequence_counts


def token_sequences(corpus: Corpus, seq_len: int) -> Int64s:
    """Return how many sequences of ``seq_len`` each shard gives.

    Raises:
        PlanError: no shard is long enough for one.
    """
    tokens = token_counts(corpus)
    counts = sequence_counts(tokens, seq_len)
    if not counts.any():
        raise PlanError(
            f"{corpus.uri}: no shard is long enough for one sequence: the longest holds {int(tokens.max(initial=0))}"
            f" tokens, and seq_len {seq_len} needs {seq_len + 1}",
            hint="use a smaller seq_len",
        )
    return counts


def token_counts(corpus: Corpus) -> Int64s:
    """Return the tokens of each shard; int64[S].

    Raises:
        PlanError: they are not known.
    """
    if corpus.manifest.tokens is None:
        raise PlanError(
            f"{corpus.uri}: the number of tokens of some shards is not known", hint=f"run: iostack index {corpus.uri}"
        )
    return corpus.manifest.tokens
