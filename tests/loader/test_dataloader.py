"""A Loader is an IterableDataset, a Corpus a map-style dataset, also inside torch's and torchdata's loaders."""

from __future__ import annotations

from itertools import islice
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from iostack.errors import SampleError, UsageError

from .pipelines import Corpora, make


@pytest.mark.parametrize("pipeline", ["tokens", "texts", "rows transformed"])
@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_dataloader_without_batching_gives_the_same_batches(small: Corpora, pipeline: str, num_workers: int) -> None:
    plain = list(islice(make(small, pipeline, epochs=1), 5))
    loader = make(small, pipeline, epochs=1)
    assert isinstance(loader, IterableDataset)
    given = DataLoader(
        loader,
        batch_size=None,
        num_workers=num_workers,
        timeout=60 if num_workers else 0,
        multiprocessing_context="fork" if num_workers else None,
    )
    batches = list(given)[:5]
    assert len(batches) == len(plain) > 0
    for left, right in zip(batches, plain, strict=True):
        assert left.keys() == right.keys()
        for name, column in left.items():
            same = torch.equal(column, right[name]) if isinstance(column, torch.Tensor) else column == right[name]
            assert same, name


def test_two_workers_are_refused_because_each_would_give_every_batch(small: Corpora) -> None:
    batches: Any = iter(
        DataLoader(make(small, "tokens"), batch_size=None, num_workers=2, timeout=60, multiprocessing_context="fork")
    )
    try:
        with pytest.raises(UsageError, match="2 DataLoader workers"):
            next(batches)
    finally:
        batches._shutdown_workers()  # left to the garbage collector, torch takes 10 s over it


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")
@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("pipeline", ["tokens", "texts", "rows transformed"])
def test_a_stateful_dataloader_goes_on_where_its_state_was_taken(
    small: Corpora, pipeline: str, num_workers: int
) -> None:
    stateful = pytest.importorskip("torchdata.stateful_dataloader").StatefulDataLoader

    def identities(loader: Any, count: int) -> list[list[int]]:
        batches = iter(loader)
        return [next(batches)["sample_ids"].tolist() for _ in range(count)]

    whole = identities(make(small, pipeline), 7)
    context = "fork" if num_workers else None  # other tests may have changed the default
    first, second = (
        stateful(make(small, pipeline), batch_size=None, num_workers=num_workers, multiprocessing_context=context)
        for _ in range(2)
    )
    batches = iter(first)
    taken = [next(batches)["sample_ids"].tolist() for _ in range(3)]
    second.load_state_dict(first.state_dict())
    assert taken + identities(second, 4) == whole


@pytest.mark.parametrize("context", [None, "fork", "spawn", "forkserver"])
def test_a_corpus_is_a_map_style_dataset_in_any_kind_of_worker(small: Corpora, context: str | None) -> None:
    corpus = small["bad counted"] if context is None else small["tar counted"]
    if context is None:
        with pytest.raises(SampleError):
            corpus.__getitems__([0, 7])
        assert corpus.__getitems__([-1, 0, 3, 0]) == [corpus[89], corpus[0], corpus[3], corpus[0]]
        assert corpus.__getitems__([]) == []
        return
    loader = DataLoader(
        corpus,  # type: ignore[arg-type]  # it has __getitem__ and __len__
        batch_size=20,
        num_workers=2,
        multiprocessing_context=context,
        collate_fn=_keys,
        timeout=60,
    )
    assert [key for keys in loader for key in keys] == [corpus[index]["__key__"] for index in range(len(corpus))]


def _keys(samples: list[dict[str, Any]]) -> list[str]:
    return [sample["__key__"] for sample in samples]
