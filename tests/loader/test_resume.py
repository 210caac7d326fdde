"""Stopping anywhere and going on, on any number of ranks, equals never stopping."""

from __future__ import annotations

import json
import threading
from functools import partial
from itertools import chain, islice
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import iostack
from iostack.testing import check_resume_at_every_step, take_steps

from . import pipelines
from .pipelines import ENDLESS, SINGLE, Corpora, make


@pytest.mark.parametrize("pipeline", ENDLESS)
def test_resuming_at_every_step_on_any_ranks_equals_never_stopping(small: Corpora, pipeline: str) -> None:
    # 4 lanes: 2 ranks have lanes of their own, 3 share all of them, so that a lane's samples fall to ranks in turn.
    check_resume_at_every_step(lambda rank, ranks: make(small, pipeline, rank, ranks), num_steps=3, ranks=(1, 2, 3))


@pytest.mark.parametrize("pipeline", SINGLE)
def test_a_finite_pass_resumes_at_every_step_to_its_end(small: Corpora, pipeline: str) -> None:
    check_resume_at_every_step(
        lambda rank, ranks: make(small, pipeline, rank, ranks, batch_size=48, epochs=1), num_steps=20, ranks=(1, 3)
    )


@settings(derandomize=True, deadline=None, max_examples=25)
@given(
    pipeline=st.sampled_from(ENDLESS),
    lanes=st.integers(1, 7),
    per_rank=st.integers(1, 4),
    ranks=st.integers(1, 5),
    later=st.integers(1, 5),
    later_per_rank=st.integers(1, 5),
    steps=st.integers(1, 5),
)
def test_other_batch_sizes_go_on_where_the_samples_stopped(
    small: Corpora,
    pipeline: str,
    lanes: int,
    per_rank: int,
    ranks: int,
    later: int,
    later_per_rank: int,
    steps: int,
) -> None:
    if pipeline not in SINGLE:
        lanes = 4
    before = [make(small, pipeline, rank, ranks, lanes=lanes, batch_size=per_rank * ranks) for rank in range(ranks)]
    list(take_steps(before, steps))
    state = iostack.merge_states([loader.state_dict() for loader in before])
    after = [make(small, pipeline, r, later, lanes=lanes, batch_size=later_per_rank * later) for r in range(later)]
    for loader in after:
        loader.load_state_dict(state)
    found = list(chain.from_iterable(take_steps(after, 4)))
    start = steps * per_rank * ranks
    whole = chain.from_iterable(take_steps([make(small, pipeline, lanes=lanes, batch_size=1)], start + len(found)))
    assert found == list(islice(whole, start, None))
    for loader in (*before, *after):
        loader.close()


@pytest.mark.parametrize("pipeline", ENDLESS)
def test_the_merged_state_is_the_same_for_every_number_of_ranks(small: Corpora, pipeline: str) -> None:
    merged = []
    for ranks in (1, 2, 3, 6):
        loaders = [make(small, pipeline, rank, ranks) for rank in range(ranks)]
        list(take_steps(loaders, 4))
        merged.append(iostack.merge_states([loader.state_dict() for loader in loaders]))
        for loader in loaders:
            loader.close()
    assert merged == merged[:1] * 4


@pytest.mark.parametrize("pipeline", ENDLESS)
def test_the_state_is_small_and_survives_json(small: Corpora, pipeline: str) -> None:
    with make(small, pipeline) as loader:
        next(iter(loader))
        state = loader.state_dict()
        text = json.dumps(state)
        assert json.loads(text) == state == loader.state_dict()
        assert len(text) < 2000


@pytest.mark.parametrize("pipeline", ENDLESS)
def test_how_far_threads_ran_ahead_does_not_show_in_the_state(small: Corpora, pipeline: str) -> None:
    found: list[Any] = []
    for lookahead_bytes, threads in ((0, 1), ("1 GiB", 4)):
        with make(small, pipeline, lookahead_bytes=lookahead_bytes, threads=threads) as loader:
            batches = iter(loader)
            found.append([(next(batches)["sample_ids"].tolist(), loader.state_dict()) for _ in range(6)])
    assert found[0] == found[1]


@pytest.mark.parametrize("pipeline", ENDLESS)
def test_a_state_taken_inside_the_loop_is_that_of_the_batch_in_hand(small: Corpora, pipeline: str) -> None:
    with make(small, pipeline) as loader, make(small, pipeline) as other:
        for batch in islice(loader, 3):
            state, last = loader.state_dict(), batch
        after = next(iter(loader))["sample_ids"].tolist()
        other.load_state_dict(state)
        assert next(iter(other))["sample_ids"].tolist() == after != last["sample_ids"].tolist()


def test_a_rank_goes_on_from_its_own_state_where_lanes_are_shared_and_sources_fall_to_others(small: Corpora) -> None:
    # With weights 2 + 1 and 3 ranks, each rank meets one source only, and never moves the cursors of the other.
    loaders = [make(small, "mix of tokens and texts", rank, 3) for rank in range(3)]
    list(take_steps(loaders, 30))
    expected = [next(iter(loader))["sample_ids"].tolist() for loader in loaders]
    for loader in loaders:
        loader.close()
    loaders = [make(small, "mix of tokens and texts", rank, 3) for rank in range(3)]
    list(take_steps(loaders, 30))
    for rank, loader in enumerate(loaders):
        with make(small, "mix of tokens and texts", rank, 3) as fresh:
            fresh.load_state_dict(loader.state_dict())
            assert next(iter(fresh))["sample_ids"].tolist() == expected[rank]
        loader.close()


def test_the_states_of_all_ranks_are_needed_where_units_have_cursors(small: Corpora) -> None:
    loaders = [make(small, "texts", rank, 2) for rank in range(2)]
    list(take_steps(loaders, 8))
    with make(small, "texts") as single, pytest.raises(iostack.errors.StateError, match=r"lane 1 .* needs") as caught:
        single.load_state_dict(loaders[0].state_dict())
    assert "merge_states" in caught.value.hint
    for loader in loaders:
        loader.close()


def test_no_thread_is_left_by_any_of_this(small: Corpora) -> None:
    before = set(threading.enumerate())
    for pipeline in ENDLESS:
        check_resume_at_every_step(partial(make, small, pipeline), num_steps=1)
    left = [thread for thread in set(threading.enumerate()) - before if thread.name.startswith("iostack")]
    for thread in left:  # one that has given its answer may still be on its way out
        thread.join(10)
    assert [thread.name for thread in left if thread.is_alive()] == []


def test_indexed_sources_give_the_union_of_all_ranks_exactly_once(small: Corpora) -> None:
    sequences = sum(max(count - 1, 0) // pipelines.SEQ_LEN for count in pipelines.TOKENS_PER_SHARD)
    for ranks in (1, 2, 3, 4, 6, 12):
        loaders = [make(small, "tokens", rank, ranks, epochs=1) for rank in range(ranks)]
        rows = [row["sample_ids"] for step in take_steps(loaders, 100) for row in step]
        assert len(rows) == len(set(rows)) == sequences
