"""A Loader is an IterableDataset, also inside torch's DataLoader."""

from __future__ import annotations

from itertools import islice
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from iostack.errors import UsageError

from .pipelines import Corpora, make


@pytest.mark.parametrize("pipeline", ["tokens", "texts", "rows transformed"])
@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_dataloader_without_batching_gives_the_same_batches(small: Corpora, pipeline: str, num_workers: int) -> None:
    plain = list(islice(make(small, pipeline, epochs=1), 5))
    loader = make(small, pipeline, epochs=1)
    assert isinstance(loader, IterableDataset)
    given = DataLoader(loader, batch_size=None, num_workers=num_workers, timeout=60 if num_workers else 0)
    batches = list(given)[:5]
    assert len(batches) == len(plain) > 0
    for left, right in zip(batches, plain, strict=True):
        assert left.keys() == right.keys()
        for name, column in left.items():
            same = torch.equal(column, right[name]) if isinstance(column, torch.Tensor) else column == right[name]
            assert same, name


def test_two_workers_are_refused_because_each_would_give_every_batch(small: Corpora) -> None:
    batches: Any = iter(DataLoader(make(small, "tokens"), batch_size=None, num_workers=2, timeout=60))
    try:
        with pytest.raises(UsageError, match="2 DataLoader workers"):
            next(batches)
    finally:
        batches._shutdown_workers()  # left to the garbage collector, torch takes 10 s over it
