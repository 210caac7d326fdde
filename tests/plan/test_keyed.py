"""Keyed hashes and permutations: pinned, bijective, without visible structure."""

from __future__ import annotations

from collections import Counter
from itertools import permutations
from math import factorial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iostack.plan.keyed import derive_key, keyed_hash, mix, permutation

from . import reference
from .strategies import examples, seeds


def chi_square(observed: np.ndarray, cells: int) -> float:
    """Return the statistic of counts against equal shares, as standard deviations from its mean."""
    expected = observed.sum() / cells
    statistic = float(((observed - expected) ** 2 / expected).sum())
    return (statistic - (cells - 1)) / (2 * (cells - 1)) ** 0.5


@examples(200)
@given(value=seeds)
def test_mix_equals_the_reference(value: int) -> None:
    assert mix(value) == reference.mix(value)


@examples(200)
@given(parts=st.lists(st.integers(-(2**64), 2**65), max_size=6))
def test_derive_key_equals_the_reference_and_has_64_bits(parts: list[int]) -> None:
    assert derive_key(*parts) == reference.derive_key(*parts)
    assert 0 <= derive_key(*parts) < 2**64


@examples(100)
@given(key=seeds, values=st.lists(seeds, max_size=20))
def test_keyed_hash_equals_the_reference_and_leaves_its_input_alone(key: int, values: list[int]) -> None:
    given_values = np.asarray(values, np.uint64)
    assert keyed_hash(key, given_values).tolist() == [reference.keyed_hash(key, value) for value in values]
    assert given_values.tolist() == values


@examples(100)
@given(key=seeds, length=st.integers(0, 400))
def test_permutation_equals_the_reference(key: int, length: int) -> None:
    result = permutation(key, length)
    assert result.dtype == np.int64
    assert result.tolist() == reference.permutation(key, length)


@pytest.mark.parametrize("length", [0, 1, 2, 65_535, 65_536, 65_537, 300_000])
def test_permutation_holds_every_number_once(length: int) -> None:
    assert np.array_equal(np.sort(permutation(7, length)), np.arange(length))


def test_equal_hashes_keep_their_order() -> None:
    length, key = 300_000, 7
    upper = keyed_hash(key, np.arange(length, dtype=np.uint64)) >> np.uint64(32)
    assert len(np.unique(upper)) < length, "no two hashes are equal: choose another key"
    assert np.array_equal(permutation(key, length), np.argsort(upper, kind="stable"))


@pytest.mark.parametrize("length", [3, 4, 5])
def test_every_permutation_of_a_few_numbers_is_about_equally_frequent(length: int) -> None:
    cells = factorial(length)
    seen = Counter(tuple(permutation(derive_key(0, 9, trial), length).tolist()) for trial in range(100 * cells))
    assert set(seen) == set(permutations(range(length)))
    assert abs(chi_square(np.asarray(list(seen.values())), cells)) < 4


def test_every_number_reaches_every_place_about_equally_often() -> None:
    length, trials = 16, 4000
    places = np.zeros((length, length), np.int64)
    for trial in range(trials):
        places[np.arange(length), permutation(derive_key(1, 9, trial), length)] += 1
    assert abs(chi_square(places.ravel(), length * length)) < 5


@pytest.mark.parametrize(
    "keys", [range(4000), [derive_key(5, trial) for trial in range(4000)]], ids=["plain", "derived"]
)
def test_neighbouring_keys_give_unrelated_permutations(keys: list[int]) -> None:
    length = 8
    orders = np.stack([permutation(key, length) for key in keys])
    agreements = np.zeros((length, length), np.int64)
    np.add.at(agreements, (orders[:-1].ravel(), orders[1:].ravel()), 1)
    assert abs(chi_square(agreements.ravel(), length * length)) < 5


def test_keys_of_different_parts_differ() -> None:
    parts = [
        (seed, purpose, epoch, segment)
        for seed in range(8)
        for purpose in range(4)
        for epoch in range(8)
        for segment in range(8)
    ]
    shorter = [part[:count] for part in parts for count in range(4)]
    assert len({derive_key(*part) for part in {*parts, *shorter}}) == len({*parts, *shorter})
