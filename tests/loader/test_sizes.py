"""Sizes as people write them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iostack.errors import SettingsError
from iostack.sizes import format_bytes, parse_bytes


@pytest.mark.parametrize(
    ("written", "size"),
    [
        (0, 0),
        (4096, 4096),
        (2e9, 2_000_000_000),
        ("4096", 4096),
        ("4096 b", 4096),
        ("1 KiB", 1024),
        ("1kb", 1000),
        ("1K", 1024),
        ("256 MiB", 256 << 20),
        ("1.5GB", 1_500_000_000),
        ("1.5 GiB", 3 << 29),
        (" 2 tib ", 2 << 40),
        ("9007199254740993", 9007199254740993),
    ],
)
def test_a_size_is_read(written: float | str, size: int) -> None:
    assert parse_bytes(written) == size


@pytest.mark.parametrize(
    "written",
    ["", "MiB", "1 XB", "-1", -1, "1,5 GB", "1e3", "0x10", "nan", "1 PiB", "1 2", None, [], float("nan"), "１ KB"],
)
def test_what_is_no_size_is_refused(written: Any) -> None:
    with pytest.raises(SettingsError, match="is not a size"):
        parse_bytes(written)


@settings(derandomize=True, deadline=None)
@given(st.integers(0, 1 << 62))
def test_a_size_for_people_is_read_back_to_within_its_digits(size: int) -> None:
    assert abs(parse_bytes(format_bytes(size)) - size) <= 0.051 * size
