"""Digests of samples: one for equal values in the shapes that readers give them, another for all else."""

from __future__ import annotations

import datetime
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iostack.prepare.digest import SamplesDigest


def _digest(*samples: Any) -> str:
    digest = SamplesDigest()
    for sample in samples:
        digest.add(sample)
    return digest.value()


class Text(str):
    """What a library may return for text."""


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"a": 1, "b": None}, {"a": 1}),
        ({"a": 1, "b": "x"}, {"b": "x", "a": 1}),
        ({"a": 1.0}, {"a": 1}),
        ({"a": np.float32(0.5)}, {"a": 0.5}),
        ({"a": np.int8(3)}, {"a": 3}),
        ({"a": np.bool_(True)}, {"a": True}),
        ({"a": [1, 2]}, {"a": np.array([1, 2], np.uint8)}),
        ({"a": [[1.5], [2.5]]}, {"a": np.array([[1.5], [2.5]])}),
        ({"a": [1, 2.5]}, {"a": np.array([1, 2.5])}),
        ({"a": [("k", 1)]}, {"a": [["k", 1]]}),
        ({"a": Text("x")}, {"a": "x"}),
        ({"a": bytearray(b"x")}, {"a": memoryview(b"x")}),
        ({"a": 2**70}, {"a": float(2**70)}),
    ],
)
def test_equal_values_have_one_digest(one: Any, other: Any) -> None:
    assert _digest(one) == _digest(other)


DIFFERENT = [
    {"a": 1},
    {"a": "1"},
    {"a": b"1"},
    {"a": True},
    {"a": [1]},
    {"a": [True]},
    {"a": {"a": 1}},
    {"a": 1.5},
    {"a": Decimal(1)},
    {"a": datetime.date(2020, 1, 1)},
    {"a": datetime.date(2020, 1, 2)},
    {"b": 1},
    {},
    {"a": "x" * 5000},
    {"a": b"x" * 5000},
    {"a": "x" * 5001},
    {"a": ["x" * 5000, "y"]},
    {"a": ["x" * 4999, "xy"]},
    {"a": ["y", "x" * 5000]},
]


def test_different_values_have_different_digests() -> None:
    assert len({_digest(sample) for sample in DIFFERENT}) == len(DIFFERENT)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3) | st.binary(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
    max_leaves=6,
)
SAMPLES = st.lists(st.dictionaries(st.text(max_size=2), VALUES, max_size=3), max_size=3)


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nulls(each) for name, each in value.items() if each is not None}
    return [_without_nulls(each) for each in value] if isinstance(value, list) else value


@given(one=SAMPLES, other=SAMPLES)
def test_samples_have_equal_digests_only_if_they_are_equal(one: list[Any], other: list[Any]) -> None:
    are_equal = repr_of(_without_nulls(one)) == repr_of(_without_nulls(other))
    assert (_digest(*one) == _digest(*other)) == are_equal


def repr_of(value: Any) -> str:
    """Return a text that tells 1 from True, and does not depend on the order of keys."""
    if isinstance(value, dict):
        return f"{{{', '.join(f'{name!r}: {repr_of(value[name])}' for name in sorted(value))}}}"
    return f"[{', '.join(map(repr_of, value))}]" if isinstance(value, list) else repr(value)
