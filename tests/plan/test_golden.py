"""Values that must never change: with any of these, a run that was stopped would go on with other samples.

They were computed once, by the brute-force reference. A change here breaks every saved state.
"""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from iostack.plan.identity import row_identities, unit_identities
from iostack.plan.indexed import IndexedPlan
from iostack.plan.keyed import derive_key, keyed_hash, mix, permutation
from iostack.plan.mixing import Mix, integer_weights, tijdeman_cycle
from iostack.plan.sequences import sequence_starts, unit_phase
from iostack.plan.units import Unit, UnitPlan

from .strategies import located


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, 0),
        (1, 0x5692161D100B05E5),
        (0x9E3779B97F4A7C15, 0xE220A8397B1DCDAF),  # the first number of SplitMix64 from the seed 0
        (2**64 - 1, 0xB4D055FCF2CBBD7B),
    ],
)
def test_mix(value: int, expected: int) -> None:
    assert mix(value) == expected


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ((), 0),
        ((0,), 0x4870E329627082A1),
        ((1, 2, 3), 0x871015FAFD1DEFE8),
        ((-1,), 0x55E004719FEA0B96),
        ((7, 2, 0, 3, 1), 0x16A09754EACBF8E6),
    ],
)
def test_derive_key(parts: tuple[int, ...], expected: int) -> None:
    assert derive_key(*parts) == expected


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        (0, [0x48218226FF3CD4BF, 0x9D04F601B5DC885A, 0x9E6BB59EB05B6211]),
        (2**64 - 1, [0x5310129820811569, 0x3EDFD00FA29DADFE, 0x0D3BDA1EC220592E]),
    ],
)
def test_keyed_hash(key: int, expected: list[int]) -> None:
    assert keyed_hash(key, np.asarray([0, 1, 2**63], np.uint64)).tolist() == expected


def test_permutation() -> None:
    assert permutation(0, 10).tolist() == [2, 0, 5, 9, 1, 8, 3, 7, 6, 4]
    assert permutation(42, 16).tolist() == [3, 2, 11, 9, 0, 7, 14, 15, 8, 13, 10, 6, 4, 1, 12, 5]


def test_a_permutation_of_more_than_16_bits() -> None:
    order = permutation(1, 100_000)
    assert order[:5].tolist() == [89284, 4221, 99739, 83569, 91310]
    assert order[-5:].tolist() == [67150, 83154, 62752, 77802, 34584]
    digest = hashlib.sha256(order.astype("<i8").tobytes()).hexdigest()
    assert digest == "b04bd110cee2192b23e0f2b0ab19f425ca5c4b41770a9dccf33860f66e80eef5"


def test_three_epochs_of_a_plan() -> None:
    plan = IndexedPlan(np.asarray([5, 0, 3, 9, 1]), seed=2024, lanes=4, window=3)
    # fmt: off
    expected = [
        (0, 4, 0), (0, 3, 1), (0, 3, 6), (0, 0, 2), (0, 2, 0), (0, 3, 4),
        (0, 3, 7), (0, 0, 1), (0, 2, 1), (0, 3, 2), (0, 3, 8), (0, 0, 3),
        (0, 2, 2), (0, 3, 3), (0, 0, 0), (0, 0, 4), (0, 3, 0), (0, 3, 5),
        (1, 2, 1), (1, 0, 1), (1, 3, 1), (1, 3, 5), (1, 2, 0), (1, 0, 2),
        (1, 3, 4), (1, 3, 6), (1, 2, 2), (1, 0, 4), (1, 3, 3), (1, 3, 7),
        (1, 0, 0), (1, 0, 3), (1, 3, 2), (1, 3, 8), (1, 4, 0), (1, 3, 0),
        (2, 2, 0), (2, 0, 1), (2, 3, 1), (2, 3, 6), (2, 2, 1), (2, 0, 4),
        (2, 3, 3), (2, 3, 5), (2, 4, 0), (2, 0, 2), (2, 3, 4), (2, 3, 7),
        (2, 2, 2), (2, 0, 3), (2, 3, 2), (2, 3, 8), (2, 0, 0), (2, 3, 0),
    ]
    # fmt: on
    assert located(plan, range(3 * 18)) == expected


def test_two_epochs_of_a_plan_whose_segments_do_not_stand_side_by_side() -> None:
    plan = IndexedPlan(np.asarray([7, 0, 12, 4, 10]), seed=2024, lanes=8, window=3)
    # fmt: off
    expected = [
        (0, 4, 0), (0, 2, 5), (0, 3, 3), (0, 4, 5), (0, 2, 7), (0, 0, 3),
        (0, 4, 9), (0, 2, 11), (0, 4, 1), (0, 2, 3), (0, 0, 0), (0, 4, 6),
        (0, 2, 10), (0, 0, 4), (0, 2, 0), (0, 3, 0), (0, 4, 2), (0, 2, 4),
        (0, 0, 1), (0, 4, 7), (0, 2, 8), (0, 0, 5), (0, 2, 1), (0, 3, 2),
        (0, 4, 3), (0, 2, 6), (0, 0, 2), (0, 4, 8), (0, 2, 9), (0, 0, 6),
        (0, 2, 2), (0, 3, 1), (0, 4, 4), (1, 2, 1), (1, 4, 1), (1, 0, 5),
        (1, 2, 5), (1, 4, 5), (1, 3, 0), (1, 2, 10), (1, 4, 9), (1, 2, 0),
        (1, 4, 3), (1, 0, 4), (1, 2, 6), (1, 4, 7), (1, 3, 1), (1, 2, 9),
        (1, 0, 0), (1, 2, 2), (1, 4, 2), (1, 0, 3), (1, 2, 7), (1, 4, 8),
        (1, 3, 2), (1, 4, 0), (1, 0, 2), (1, 2, 4), (1, 4, 4), (1, 0, 6),
        (1, 2, 8), (1, 4, 6), (1, 3, 3), (1, 2, 11), (1, 0, 1), (1, 2, 3),
    ]
    # fmt: on
    assert located(plan, range(2 * 33)) == expected


def test_the_cycle_of_a_mix() -> None:
    assert tijdeman_cycle((5, 3, 2)).tolist() == [0, 1, 0, 2, 0, 1, 0, 2, 1, 0]
    assert tijdeman_cycle((3, 3, 1)).tolist() == [0, 1, 0, 1, 2, 0, 1]


def test_two_lanes_of_a_mix() -> None:
    mixed = Mix((5, 3, 2), 7)
    first, second = np.arange(0, 70, 7), np.arange(3, 73, 7)
    assert mixed.sources(first).tolist() == [0, 2, 0, 1, 1, 1, 0, 0, 0, 2]
    assert mixed.sources(second).tolist() == [2, 0, 2, 0, 1, 1, 1, 0, 0, 0]
    assert mixed.draws_before(second + 140, 0).tolist() == [10, 10, 11, 11, 12, 12, 12, 12, 13, 14]


def test_a_mix_whose_cycle_turns() -> None:
    mixed = Mix((5, 3, 2), 4)
    assert mixed.offsets.tolist() == [0, 1]
    lane = np.arange(3, 83, 4)
    assert mixed.sources(lane).tolist() == [2, 2, 1, 1, 0, 0, 1, 0, 0, 0, 2, 2, 1, 1, 0, 0, 1, 0, 0, 0]
    assert mixed.draws_before(lane + 80, 1).tolist() == [
        6,
        6,
        6,
        7,
        8,
        8,
        8,
        9,
        9,
        9,
        9,
        9,
        9,
        10,
        11,
        11,
        11,
        12,
        12,
        12,
    ]


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ([3, 1, 1], (3, 1, 1)),
        ([6, 2, 2], (3, 1, 1)),
        ([1, 1], (1, 1)),
        ([0.7, 0.2, 0.1], (7, 2, 1)),
        ([3.14159, 2.71828, 1], (4580, 3962, 1458)),
    ],
)
def test_integer_weights(weights: list[float], expected: tuple[int, ...]) -> None:
    assert integer_weights(weights) == expected


def test_the_phases_of_shards() -> None:
    tokens, rows = np.full(3, 47), np.full(3, 2)
    starts = [sequence_starts(tokens, 10, 5, np.full(3, e), np.arange(3), rows).tolist() for e in range(4)]
    assert starts == [[26, 22, 26], [26, 23, 25], [25, 26, 24], [20, 23, 24]]


def test_the_phases_of_units() -> None:
    phases = [unit_phase(100_000, 4096, 5, epoch, unit) for epoch in (0, 1) for unit in (0, 1, 2)]
    assert phases == [678, 521, 1044, 505, 1560, 263]


def test_a_lane_of_units() -> None:
    plan = UnitPlan(np.asarray([25, 0, 7, 10]), 10, seed=9, lanes=2, window=2)
    assert [plan.unit(1, draw) for draw in range(5)] == [
        Unit(epoch=0, shard=0, first_row=20, num_rows=5, number=2),
        Unit(epoch=0, shard=2, first_row=0, num_rows=7, number=3),
        Unit(epoch=1, shard=2, first_row=0, num_rows=7, number=3),
        Unit(epoch=1, shard=3, first_row=0, num_rows=10, number=4),
        Unit(epoch=1, shard=0, first_row=0, num_rows=10, number=0),
    ]


def test_the_identities_of_rows_and_outputs() -> None:
    assert row_identities(2, np.asarray([0, 1, 1]), np.asarray([0, 0, 7])).tolist() == [
        1076584837610721469,
        -6101181259789611507,
        4323703511764024929,
    ]
    assert unit_identities(2, 5, 2).tolist() == [-294124927758570640, -6315743326668772044]
