"""Arrays that transforms make in the memory of the batch: nothing tells them from others, but that nobody copied them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from worker_transforms import decode_number

import iostack
from iostack.batch_memory import BatchMemory, array_for, begin_sample
from iostack.loader.tasks.collate import as_tensors, collate

from .pipelines import TAR, Corpora
from .test_slots import HOLDS

Made = dict[str, Any]


def _batch(memory: BatchMemory, make: Callable[[int], Made], num_samples: int = 4) -> dict[str, Any]:
    with memory.batch(num_samples) as places:
        samples = []
        for index in range(num_samples):
            begin_sample(index)
            samples.append(make(index))
        return collate(samples, places)


def _filled(index: int, shape: tuple[int, ...] = (3, 3), dtype: str = "float32") -> NDArray[Any]:
    array = array_for("x", shape, dtype)
    array[...] = index
    return array


def test_arrays_that_were_alike_in_a_batch_are_made_in_place_in_the_next() -> None:
    made: list[NDArray[Any]] = []

    def make(index: int) -> Made:
        made.append(_filled(index, (2, 3, 5)))
        return {"x": made[-1].transpose(axes)}

    for axes in ((0, 1, 2), (2, 0, 1)):
        memory = BatchMemory()
        for expected in (False, True):
            made.clear()
            column = _batch(memory, make)["x"]
            assert column.tolist() == np.stack([each.transpose(axes) for each in made]).tolist()
            assert [np.shares_memory(column, each) for each in made] == [expected] * 4


def test_a_number_may_be_made_as_an_array_without_dimensions() -> None:
    memory = BatchMemory()
    for _ in range(3):
        assert _batch(memory, lambda index: {"x": _filled(index, ())})["x"].tolist() == [0, 1, 2, 3]


def test_no_memory_is_taken_for_a_batch_of_arrays_as_large_as_a_single_one() -> None:
    memory = BatchMemory()
    for _ in range(3):
        arrays = _batch(memory, lambda index: {"x": _filled(index, (1 << 20 if index == 2 else 8,), "uint8")})["x"]
        assert isinstance(arrays, list)
        assert [each.nbytes if each.base is None else -1 for each in arrays] == [8, 8, 1 << 20, 8]


def test_outside_a_batch_memory_is_fresh() -> None:
    begin_sample(7)
    assert _filled(7).base is None


@pytest.mark.parametrize("hold", HOLDS)
def test_memory_is_not_used_again_while_anything_over_it_is_held(hold: str) -> None:
    memory = BatchMemory()
    _batch(memory, lambda index: {"x": _filled(index)})

    def next_batch() -> torch.Tensor:
        batch: torch.Tensor = as_tensors(_batch(memory, lambda index: {"x": _filled(index).reshape(9)}))["x"]
        return batch

    batch = next_batch()
    address = batch.data_ptr()
    held = HOLDS[hold](batch)
    del batch
    assert address not in [next_batch().data_ptr() for _ in range(5)]
    del held
    assert address in [next_batch().data_ptr() for _ in range(5)]


def test_a_single_array_that_is_held_keeps_its_batch() -> None:
    memory = BatchMemory()
    _batch(memory, lambda index: {"x": _filled(index)})
    held = _batch(memory, lambda index: {"x": _filled(index), "y": 1} if index else {"x": _filled(index)[:1], "y": 1})[
        "x"
    ][3]
    for _ in range(5):
        _batch(memory, lambda index: {"x": _filled(index + 10)})
    assert (held == 3).all()


WAYS: dict[str, Callable[[NDArray[Any], int], Made]] = {
    "in place": lambda array, index: {"x": array},
    "turned": lambda array, index: {"x": array.transpose(1, 0)},
    "flat": lambda array, index: {"x": array.reshape(-1)},
    "as other numbers": lambda array, index: {"x": array.view(np.int32)},
    "as bytes": lambda array, index: {"x": array.view(np.uint8)},
    "a part": lambda array, index: {"x": array[:1]},
    "backwards": lambda array, index: {"x": array[::-1]},
    "computed": lambda array, index: {"x": array + 1},
    "twice": lambda array, index: {"x": array, "y": array},
    "another shape": lambda array, index: {"x": _filled(index + 200, (3, 2))},
    "elsewhere": lambda array, index: {"y": array},
    "nowhere": lambda array, index: {"x": index},
}


def _made(ways: list[str], first: int, copies: list[Made], index: int) -> Made:
    made = WAYS[ways[index]](_filled(index + first), index)
    copies.append(copy.deepcopy(made))
    return made


_WAYS = st.sampled_from(sorted(WAYS))


@settings(derandomize=True, deadline=None, max_examples=150)
@example(4, [("in place", ["turned"])])
@given(st.integers(1, 4), st.lists(st.tuples(_WAYS, st.lists(_WAYS, max_size=2)), max_size=4))
def test_whatever_becomes_of_a_place_the_batch_is_what_copying_gives(
    num_samples: int, batches: list[tuple[str, list[str]]]
) -> None:
    memory = BatchMemory()
    found, expected = [], []
    for number, (usual, others) in enumerate([("in place", []), *batches]):
        copies: list[Made] = []
        make = partial(_made, [*others, *[usual] * 4], 10 * number, copies)
        found.append(_batch(memory, make, num_samples))
        expected.append(collate(copies))
    for left, right in zip(found, expected, strict=True):
        assert left.keys() == right.keys()
        for name in left:
            assert isinstance(left[name], type(right[name]))
            for one, other in zip(left[name], right[name], strict=True):
                assert np.array_equal(one, other)
                assert np.asarray(one).dtype == np.asarray(other).dtype


def test_whoever_asks_twice_for_one_sample_gets_two_arrays() -> None:
    memory = BatchMemory()
    for _ in range(2):
        batch = _batch(memory, lambda index: {"x": _filled(index), "y": _filled(index + 10)})
        assert batch["x"][:, 0, 0].tolist() == [0, 1, 2, 3]
        assert batch["y"][:, 0, 0].tolist() == [10, 11, 12, 13]


def test_samples_that_come_in_parts_have_the_places_that_they_take_in_the_batch() -> None:
    memory = BatchMemory()
    _batch(memory, lambda index: {"x": _filled(index)})
    made: dict[int, NDArray[Any]] = {}
    with memory.batch(4) as places:
        for part in ([3, 1], [0, 2]):
            places.part = part
            for index, place in enumerate(part):
                begin_sample(index)
                made[place] = _filled(place)
        column = collate([{"x": made[place]} for place in range(4)], places)["x"]
    assert column[:, 0, 0].tolist() == [0, 1, 2, 3]
    assert np.shares_memory(column, made[1])


def test_batches_that_are_made_together_lie_in_one_memory_and_share_nothing() -> None:
    memory = BatchMemory()
    _batch(memory, lambda index: {"x": _filled(index)})
    with memory.batch(6) as places:
        samples = []
        for index in range(6):
            begin_sample(index)
            samples.append({"x": _filled(index)})
        first, second, again = (collate(samples[part], places)["x"] for part in (slice(2), slice(2, 6), slice(1, 3)))
    for column, expected in ((first, [0, 1]), (second, [2, 3, 4, 5]), (again, [1, 2])):
        assert column[:, 0, 0].tolist() == expected
    assert np.shares_memory(second, samples[5]["x"])
    assert not np.shares_memory(first, second)
    assert not np.shares_memory(again, first)


def test_samples_that_exchange_their_arrays_are_copied() -> None:
    memory = BatchMemory()
    _batch(memory, lambda index: {"x": _filled(index)})
    made: list[NDArray[Any]] = []
    with memory.batch(4) as places:
        for index in range(4):
            begin_sample(index)
            made.append(_filled(index))
        column = collate([{"x": made[index]} for index in (2, 1, 0, 3)], places)["x"]
    assert column[:, 0, 0].tolist() == [2, 1, 0, 3]


def test_no_two_columns_of_a_batch_share_memory() -> None:
    memory = BatchMemory()
    for _ in range(3):
        batch = _batch(memory, lambda index: WAYS["twice"](_filled(index), index))
        assert not np.shares_memory(batch["x"], batch["y"])


@pytest.mark.parametrize("workers", [0, 2])
def test_arrays_of_a_mix_lie_at_their_samples_and_never_change_while_held(small: Corpora, workers: int) -> None:
    sources = [(small["tar counted"], 3), (small["tar"], 1)]
    options = TAR | {"transforms": [decode_number], "max_bad_samples": 100}
    with iostack.Loader(sources, batch_size=12, lanes=4, threads=2, workers=workers, **options) as loader:
        held = [(batch["bytes"][1:], batch["number"][1:].tolist()) for batch in islice(loader, 40)]
    for arrays, numbers in held:
        assert arrays.tolist() == [list((bytes([number]) * number)[:4].ljust(4)) for number in numbers]
