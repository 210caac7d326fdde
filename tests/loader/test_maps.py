"""Rows gathered out of many maps at once are the slices of each, whatever lies between the maps."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iostack.errors import ShardError
from iostack.loader.sequences import maps as maps_module
from iostack.loader.sequences.maps import Maps, Tokens

WIDTH = 7


def _shards(dtypes: list[str], *, step: int = 1) -> list[Tokens]:
    random = np.random.default_rng(2)
    memory = [np.frombuffer(random.bytes(400 * np.dtype(dtype).itemsize + 1), np.uint8) for dtype in dtypes]
    # Every other shard begins at an odd address.
    return [
        each[number % 2 :][: 400 * np.dtype(dtype).itemsize].view(dtype)[::step]
        for number, (each, dtype) in enumerate(zip(memory, dtypes))
    ]


def _check(maps: Maps, shards: list[Tokens], chosen: list[tuple[int, int]], places: list[int]) -> None:
    out = np.full((40, WIDTH), -1, np.int64)
    numbers, starts = np.asarray(chosen, np.int64).T
    maps.gather(numbers, starts, np.asarray(places, np.int64), out)
    expected = np.full((40, WIDTH), -1, np.int64)
    for place, (number, start) in zip(places, chosen, strict=True):
        expected[place] = shards[number][start : start + WIDTH]
    assert out.tolist() == expected.tolist()


ROWS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 200 - WIDTH)), min_size=1, max_size=40)


@pytest.mark.parametrize(
    ("dtypes", "step"),
    [
        (["uint16"] * 5, 1),
        (["int64"] * 5, 1),
        (["uint8"] * 5, 1),
        ([">i4"] * 5, 1),
        (["uint16", "int32"] * 3, 1),
        (["int16"] * 5, 2),
    ],
    ids=["uint16", "int64", "uint8", "big-endian", "several types", "not contiguous"],
)
@settings(max_examples=30)
@given(data=st.data())
def test_rows_are_slices_of_their_shards(dtypes: list[str], step: int, data: st.DataObject) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(maps_module, "_STAGING_BYTES", data.draw(st.sampled_from([1, 100, 1 << 18])))
        shards = _shards(dtypes, step=step)
        maps = Maps(shards.__getitem__, len(shards), WIDTH)
        for _ in range(3):
            chosen = data.draw(ROWS)
            places = data.draw(st.sets(st.integers(0, 39), min_size=len(chosen), max_size=len(chosen)))
            _check(maps, shards, chosen, sorted(places))


def test_maps_that_are_too_far_apart_for_one_array_are_read_row_by_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maps_module, "_MOST_ARRAY_BYTES", 1000)
    shards = _shards(["uint16"] * 5)
    _check(Maps(shards.__getitem__, 5, WIDTH), shards, [(number, 3 * number) for number in range(5)], list(range(5)))


def test_of_too_many_maps_all_are_forgotten_and_opened_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maps_module, "_OPEN_MAPS", 2)
    shards = _shards(["uint16"] * 5)
    opened: list[int] = []

    def open_map(number: int) -> Tokens:
        opened.append(number)
        return shards[number].copy()

    maps = Maps(open_map, 5, WIDTH)
    for numbers in ([0], [1, 0], [2], [2, 1, 0, 3, 4], [4]):
        _check(maps, shards, [(number, 5) for number in numbers], list(range(len(numbers))))
    assert opened == [0, 1, 2, 0, 1, 3, 4]


def test_maps_that_are_open_stay_right_when_another_does_not_open() -> None:
    shards = _shards(["uint16"] * 5)

    def open_map(number: int) -> Tokens:
        if number == 3:
            raise ShardError("3 is damaged")
        return shards[number]

    maps = Maps(open_map, 5, WIDTH)
    _check(maps, shards, [(4, 1)], [0])
    with pytest.raises(ShardError):
        _check(maps, shards, [(0, 1), (1, 1), (2, 1), (3, 1)], [0, 1, 2, 3])
    _check(maps, shards, [(0, 9), (1, 9), (2, 9), (4, 9)], [0, 1, 2, 3])


def test_maps_are_let_go() -> None:
    shards = _shards(["uint16"] * 5)
    maps = Maps(shards.__getitem__, 5, WIDTH)
    _check(maps, shards, [(0, 1), (4, 2)], [0, 1])
    maps.clear()
    _check(maps, shards, [(4, 2), (1, 2)], [0, 1])
