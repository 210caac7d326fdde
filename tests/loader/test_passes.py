"""Finite passes: every sample once, padding that says so, and what the next iteration does."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from typing import Any

import numpy as np
import pytest

import iostack
from iostack.errors import PlanError
from iostack.testing import take_steps

from .pipelines import NUM_ROWS, SEQ_LEN, SINGLE, TOKENS_PER_SHARD, Corpora, make

INDEXED = [
    name
    for name in SINGLE
    if name in ("tokens", "tokens of litdata", "tokens split", "rows keyed") or "rows counted" in name
]
BY_DATA = [name for name in SINGLE if name not in INDEXED]
WITHOUT_BAD = [
    name for name in SINGLE if "bad" not in name and name not in ("rows transformed", "rows counted transformed")
]

NUM_SEQUENCES = sum(max(count - 1, 0) // SEQ_LEN for count in TOKENS_PER_SHARD)


def _ids(loader: iostack.Loader) -> list[int]:
    return [int(number) for batch in loader for number in batch["sample_ids"][batch["valid"]]]


def _pass(small: Corpora, pipeline: str, ranks: int, **changes: Any) -> list[list[int]]:
    """The identities of each step of a finite pass, sorted."""
    loaders = [make(small, pipeline, rank, ranks, epochs=1, **changes) for rank in range(ranks)]
    steps = [sorted(row["sample_ids"] for row in step) for step in take_steps(loaders, 1000)]
    for loader in loaders:
        loader.close()
    return steps


@pytest.mark.parametrize("pipeline", SINGLE)
def test_the_set_of_samples_of_a_step_is_the_same_for_every_number_of_ranks(small: Corpora, pipeline: str) -> None:
    whole = _pass(small, pipeline, 1)
    for ranks in (2, 3, 4, 6):
        assert _pass(small, pipeline, ranks) == whole


@pytest.mark.parametrize("pipeline", WITHOUT_BAD)
@pytest.mark.parametrize("batch_size", [1, 5, 12, 1000])
def test_every_epoch_of_a_pass_gives_every_sample_once(small: Corpora, pipeline: str, batch_size: int) -> None:
    once = _ids(make(small, pipeline, batch_size=batch_size, epochs=1))
    assert len(once) == len(set(once))
    if pipeline == "tokens" or ("rows" in pipeline and "filtered" not in pipeline):
        assert len(once) == (NUM_SEQUENCES if pipeline == "tokens" else NUM_ROWS)
    twice = Counter(_ids(make(small, pipeline, batch_size=batch_size, epochs=2)))
    assert twice == Counter(dict.fromkeys(once, 2))


@pytest.mark.parametrize("pipeline", INDEXED)
@pytest.mark.parametrize("ranks", [1, 3, 4])
def test_all_ranks_make_as_many_steps_as_arithmetic_says(small: Corpora, pipeline: str, ranks: int) -> None:
    for rank in range(ranks):
        loader = make(small, pipeline, rank, ranks, epochs=1)
        batches = list(loader)
        assert len(batches) == loader.num_steps
        for batch in batches[:-1]:
            assert batch["valid"].all()


@pytest.mark.parametrize("pipeline", SINGLE)
def test_rows_that_pad_are_not_valid_and_have_the_id_zero(small: Corpora, pipeline: str) -> None:
    loader = make(small, pipeline, epochs=1, batch_size=1000)
    padding = [batch["sample_ids"][~batch["valid"]] for batch in loader]
    assert sum(map(len, padding)) > 0
    for identities in padding:
        assert not identities.any()


@pytest.mark.parametrize("pipeline", BY_DATA)
def test_only_the_data_says_how_many_steps_a_pass_of_units_has(small: Corpora, pipeline: str) -> None:
    loader = make(small, pipeline, epochs=1)
    assert loader.num_steps is None
    last = list(loader)[-1]
    assert last["valid"].any()


@pytest.mark.parametrize("pipeline", SINGLE)
def test_a_finished_pass_starts_over(small: Corpora, pipeline: str) -> None:
    loader = make(small, pipeline, epochs=1)
    assert _ids(loader) == _ids(loader) != []
    assert loader.position == 0


@pytest.mark.parametrize("pipeline", SINGLE)
def test_a_state_after_the_last_batch_has_nothing_left_and_then_starts_over(small: Corpora, pipeline: str) -> None:
    loader = make(small, pipeline, epochs=1)
    steps = len(list(loader))
    last = [loader.state_dict() for _ in islice(loader, steps)][-1]
    with make(small, pipeline, epochs=1) as other:
        other.load_state_dict(last)
        assert list(other) == []
        assert len(list(other)) == steps


@pytest.mark.parametrize("pipeline", SINGLE)
def test_an_endless_loader_goes_on_into_the_next_epoch(small: Corpora, pipeline: str) -> None:
    one, two = (len(_ids(make(small, pipeline, epochs=epochs, batch_size=1))) for epochs in (1, 2))
    with make(small, pipeline, batch_size=1) as loader:
        assert loader.num_steps is None
        found = [int(batch["sample_ids"]) for batch in islice(loader, two + 3)]
    if pipeline in ("tokens", "rows counted"):
        assert sorted(found[:one]) == sorted(found[one:two])
        assert found[:one] != found[one:two]
    assert len(found) == two + 3


def test_every_epoch_of_tokens_cuts_at_another_phase(small: Corpora) -> None:
    batches = list(make(small, "tokens", epochs=2, batch_size=1))
    content: dict[int, list[list[int]]] = {}
    for batch in batches:
        content.setdefault(int(batch["sample_ids"]), []).append(batch["tokens"][0].tolist())
    assert sum(first != second for first, second in content.values()) > len(content) // 2


def test_other_seeds_give_other_orders(small: Corpora) -> None:
    orders = {tuple(_ids(make(small, "tokens", epochs=1, seed=seed))) for seed in range(8)}
    assert len(orders) == 8
    assert len({tuple(sorted(order)) for order in orders}) == 1


def test_a_mix_has_no_epochs(small: Corpora) -> None:
    with pytest.raises(PlanError, match="no epochs"):
        make(small, "mix of rows", epochs=1)


def test_a_mix_is_within_one_sample_of_its_weights(small: Corpora) -> None:
    sources = [small["tar counted"], small["tokens"]]
    loader = iostack.Loader([(sources[0], 3), (sources[1], 1)], batch_size=1, lanes=3)
    given = np.asarray(["jpg" in batch for batch in islice(loader, 200)])
    loader.close()
    for stop in range(1, 201):
        assert abs(given[:stop].sum() - stop * 3 / 4) <= 1


def test_a_pass_that_is_mostly_padding_says_so_and_what_helps(small: Corpora, caplog: pytest.LogCaptureFixture) -> None:
    make(small, "texts", epochs=1, lanes=64).close()
    assert "6 units of it to 64 lanes" in caplog.text
    assert f"iostack index {small['texts'].uri}" in caplog.text
    caplog.clear()
    make(small, "texts", lanes=64).close()
    make(small, "texts counted", epochs=1, lanes=4).close()
    assert not caplog.text
