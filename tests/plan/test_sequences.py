"""Sequences of tokens: inside their shard, side by side, and cut at another phase in every epoch."""

from __future__ import annotations

from collections import Counter
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iostack.plan.sequences import sequence_counts, sequence_starts, unit_phase

from . import reference
from .strategies import examples, seeds

shards_of_tokens = st.lists(st.integers(0, 60), min_size=1, max_size=6)


@examples(100)
@given(tokens=shards_of_tokens, seq_len=st.integers(1, 12), seed=seeds)
def test_sequences_equal_the_reference(tokens: list[int], seq_len: int, seed: int) -> None:
    lengths = np.asarray(tokens, np.int64)
    counts = sequence_counts(lengths, seq_len).tolist()
    expected = {
        (epoch, shard): reference.sequences(length, seq_len, seed, epoch, shard)
        for epoch, (shard, length) in product(range(3), enumerate(tokens))
    }
    assert all(counts[shard] == len(ranges) for (_, shard), ranges in expected.items())
    every = [(epoch, shard, row) for (epoch, shard), ranges in expected.items() for row in range(len(ranges))]
    every.sort(key=lambda sample: sample[::-1])
    epochs, shards, rows = (np.asarray([sample[i] for sample in every], np.int64) for i in range(3))
    starts = sequence_starts(lengths, seq_len, seed, epochs, shards, rows)
    assert starts.dtype == np.int64
    assert starts.tolist() == [expected[epoch, shard][row].start for epoch, shard, row in every]


@examples(100)
@given(tokens=shards_of_tokens, seq_len=st.integers(1, 12), seed=seeds, epoch=st.integers(0, 9))
def test_sequences_stay_in_their_shard_and_share_only_the_label_at_their_border(
    tokens: list[int], seq_len: int, seed: int, epoch: int
) -> None:
    lengths = np.asarray(tokens, np.int64)
    for shard, count in enumerate(sequence_counts(lengths, seq_len).tolist()):
        rows = np.arange(count)
        starts = sequence_starts(lengths, seq_len, seed, np.full(count, epoch), np.full(count, shard), rows)
        assert all(start >= 0 and start + seq_len + 1 <= tokens[shard] for start in starts.tolist())
        assert set(np.diff(starts).tolist()) <= {seq_len}
        assert tokens[shard] - 1 - count * seq_len < seq_len


def test_no_sequences_have_no_starts() -> None:
    none = np.empty(0, np.int64)
    assert sequence_starts(np.asarray([9]), 4, 0, none, none, none).tolist() == []


def test_every_phase_comes_about_equally_often_over_the_epochs_and_shards() -> None:
    tokens, seq_len = np.full(50, 4 * 10 + 8), 10
    epochs, shards = (grid.ravel() for grid in np.meshgrid(np.arange(400), np.arange(50), indexing="ij"))
    phases = sequence_starts(tokens, seq_len, 0, epochs, shards, np.zeros_like(shards))
    seen = np.bincount(phases, minlength=8)
    assert len(seen) == 8
    assert np.abs(seen / len(phases) - 1 / 8).max() < 0.01


def test_the_tails_of_a_shard_rotate_from_epoch_to_epoch() -> None:
    tokens = np.asarray([25])
    starts = [
        int(sequence_starts(tokens, 10, 0, np.asarray([e]), np.asarray([0]), np.asarray([0]))[0]) for e in range(40)
    ]
    assert set(starts) == {0, 1, 2, 3, 4}


def test_a_shard_without_slack_is_cut_at_its_first_token() -> None:
    assert sequence_starts(np.asarray([21]), 10, 5, np.asarray([3]), np.asarray([0]), np.asarray([1])).tolist() == [10]


@pytest.mark.parametrize("seq_len", [1, 7])
def test_the_first_sequence_of_a_unit_leaves_room_for_all_of_them(seq_len: int) -> None:
    seen: Counter[int] = Counter()
    for tokens, epoch in product(range(30), range(30)):
        phase = unit_phase(tokens, seq_len, 1, epoch, 2)
        count = max(tokens - 1, 0) // seq_len
        assert phase >= 0
        assert phase + count * seq_len + 1 <= max(tokens, 1)
        seen[phase] += 1
    assert set(seen) == set(range(seq_len))


def test_the_phase_of_a_unit_is_keyed_by_seed_epoch_and_unit() -> None:
    for parts in product(range(3), range(3), range(3)):
        seed, epoch, unit = parts
        assert unit_phase(1000, 1000, seed, epoch, unit) == reference.derive_key(seed, 3, epoch, unit) % 1000
