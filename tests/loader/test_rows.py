"""Whole samples: columns, what becomes a tensor, and what stays a list."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import corpora
import numpy as np
import pytest
import torch

import iostack
from iostack.errors import UsageError
from iostack.loader.tasks.collate import as_tensors, collate

from .pipelines import Corpora, make


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([1, 2], torch.int64),
        ([True, False], torch.bool),
        ([1.5, 0.1], torch.float64),
        ([np.zeros(3, np.uint16), np.ones(3, np.uint16)], torch.uint16),
        ([np.zeros((2, 2), np.float32)] * 2, torch.float32),
        ([torch.zeros(2), torch.ones(2)], torch.float32),
    ],
)
def test_numbers_and_arrays_of_one_shape_become_tensors(values: list[Any], dtype: torch.dtype) -> None:
    column = as_tensors(collate([{"a": value} for value in values]))["a"]
    assert column.dtype == dtype
    assert column.tolist() == [np.asarray(value).tolist() for value in values]


@pytest.mark.parametrize(
    "values",
    [
        [1, 2.5],
        [1, True],
        [1, None],
        [2**63, 1],
        ["a", "b"],
        [b"a", b"b"],
        [np.zeros(2), np.zeros(3)],
        [np.zeros(2), np.zeros(2, np.int8)],
        [np.array(["a"]), np.array(["b"])],
        [torch.zeros(2), torch.zeros(3)],
        [[1], [2, 3]],
        [{"x": 1}, {}],
    ],
)
def test_all_else_stays_as_it_is_in_a_list(values: list[Any]) -> None:
    column = collate([{"a": value} for value in values])["a"]
    assert isinstance(column, list)
    assert all(left is right for left, right in zip(column, values, strict=True))


def test_arrays_are_stacked_in_the_order_of_axes_that_they_have_in_memory() -> None:
    whole = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    for axes in ((0, 1, 2), (2, 0, 1), (1, 2, 0), (2, 1, 0)):
        column = np.asarray(collate([{"a": array.transpose(axes)} for array in whole])["a"])
        assert (column == np.stack([array.transpose(axes) for array in whole])).all()
        assert column.transpose(0, *(1 + np.argsort(axes))).flags.c_contiguous


def test_a_column_that_a_sample_lacks_holds_none_in_its_place() -> None:
    assert collate([{"a": 1}, {"b": "x"}]) == {"a": [1, None], "b": [None, "x"]}


def test_every_sample_comes_whole_and_once(small: Corpora) -> None:
    expected = corpora.grouped([member for shard in range(5) for member in corpora.images(18, 18 * shard)])
    for pipeline in ("rows", "rows counted"):
        found = [
            {name: batch[name][index] for name in ("__key__", "jpg", "json")}
            for batch in make(small, pipeline, epochs=1)
            for index in batch["valid"].nonzero().flatten().tolist()
        ]
        assert sorted(found, key=lambda sample: sample["__key__"]) == expected


@pytest.mark.parametrize("column", ["valid", "sample_ids"])
def test_a_column_that_the_loader_gives_itself_is_refused_with_a_way_out(tmp_path: Path, column: str) -> None:
    corpus = iostack.open_corpus(corpora.write_jsonl(tmp_path / "a.jsonl", [{column: 1}] * 4))
    with pytest.raises(UsageError, match=f"column '{column}'") as caught:
        next(iter(iostack.Loader(corpus, batch_size=2)))
    assert "rename" in caught.value.hint
    renamed = {"name": "rename", "columns": {column: "theirs"}}
    with iostack.Loader(corpus, batch_size=2, transforms=[renamed]) as loader:
        assert next(iter(loader))["theirs"].tolist() == [1, 1]


def test_a_keyed_transform_draws_anew_in_every_epoch_and_the_same_in_every_order_of_ranks(small: Corpora) -> None:
    drawn: dict[int, list[int]] = {}
    with make(small, "rows keyed", batch_size=30, epochs=2) as loader:
        for batch in loader:
            for identity, value in zip(batch["sample_ids"].tolist(), batch["drawn"].tolist(), strict=True):
                drawn.setdefault(identity, []).append(value)
    assert len(drawn) == 90
    assert all(len(values) == 2 and len(set(values)) == 2 and -1 not in values for values in drawn.values())
    assert len({value for values in drawn.values() for value in values}) > 150
