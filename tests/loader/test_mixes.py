"""Mixes whose weights change: phases begin where they should, and epochs of a source give each sample exactly so often."""

from __future__ import annotations

from collections import Counter
from itertools import chain
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import iostack
from iostack.errors import PlanError, StateError
from iostack.loader.order.planned import Source
from iostack.testing import check_resume_at_every_step, take_steps

from .pipelines import NUM_ROWS, PHASES, ROWS, SEQ_LEN, TEXT, TOKENS, TOKENS_PER_SHARD, Corpora, make

NUM_SEQUENCES = sum(max(count - 1, 0) // SEQ_LEN for count in TOKENS_PER_SHARD)


def _loader(sources: Any, rank: int = 0, ranks: int = 1, **changes: Any) -> iostack.Loader:
    return iostack.Loader(sources, **{"batch_size": 12, "lanes": 4, "rank": rank, "ranks": ranks, **changes})


def _ids(loaders: list[iostack.Loader], num_steps: int = 1000) -> list[list[int]]:
    steps = [[row["sample_ids"] for row in step] for step in take_steps(loaders, num_steps)]
    for loader in loaders:
        loader.close()
    return steps


def _sets(corpus: iostack.Corpus, number: int, **changes: Any) -> set[int]:
    """The identities of all samples of a corpus that is the ``number``-th source of a mix."""
    others = {"epochs": 1} if number == 0 else {}
    if number == 0:
        return set(chain.from_iterable(_ids([_loader(corpus, **changes, **others)])))
    mix = [Source(corpus, 1, epochs=1)] * (number + 1)
    first = _sets(corpus, 0, **changes)
    return set(chain.from_iterable(_ids([_loader(mix, **changes)]))) - first


@settings(derandomize=True, deadline=None, max_examples=12)
@given(
    weights=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    epochs=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    lanes=st.integers(1, 9),
    ranks=st.sampled_from([1, 2, 3, 4]),
)
def test_every_sample_of_a_source_comes_exactly_as_often_as_its_epochs(
    small: Corpora, weights: tuple[int, int], epochs: tuple[int, int], lanes: int, ranks: int
) -> None:
    corpus = small["tokens"]
    sources = [Source(corpus, weight, epochs=each) for weight, each in zip(weights, epochs, strict=True)]
    loaders = [_loader(sources, rank, ranks, lanes=lanes, **TOKENS) for rank in range(ranks)]
    num_steps = loaders[0].num_steps
    steps = _ids(loaders)
    counts = Counter(chain.from_iterable(steps))
    first = _sets(corpus, 0, **TOKENS)
    assert len(steps) == num_steps
    assert Counter({True: NUM_SEQUENCES, False: NUM_SEQUENCES}) == Counter(each in first for each in counts)
    assert all(count == epochs[0 if each in first else 1] for each, count in counts.items())


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_the_samples_of_a_step_are_the_same_for_every_number_of_ranks(small: Corpora, ranks: int) -> None:
    for pipeline in ("phases", "phases of rows", "mix that uses up a source", "mix that ends"):
        whole = _ids([make(small, pipeline, batch_size=24)], 20)
        assert _ids([make(small, pipeline, rank, ranks, batch_size=24) for rank in range(ranks)], 20) == whole


def test_a_mix_that_ends_resumes_at_every_step_to_its_end(small: Corpora) -> None:
    check_resume_at_every_step(
        lambda rank, ranks: make(small, "mix that ends", rank, ranks, batch_size=60), num_steps=20, ranks=(1, 3)
    )


def test_padding_stands_only_in_the_last_steps_of_a_mix_that_ends(small: Corpora) -> None:
    loader = _loader([Source(small["tar counted"], 3, epochs=2), Source(small["bad counted"], 1, epochs=1)], **ROWS)
    valid = [batch["valid"].tolist() for batch in loader]
    assert sum(map(sum, valid)) == 2 * NUM_ROWS + NUM_ROWS
    assert all(map(all, valid[:-2]))
    assert len(list(loader)) == len(valid) == loader.num_steps


def test_a_phase_changes_the_shares_from_its_first_sample_on(small: Corpora) -> None:
    mix = [(small["tokens"], 1), (small["texts counted"], 1)]
    first = _sets(small["tokens"], 0, **TEXT)
    phases = [{"after_samples": 22, "weights": [0, 1]}, (48, (3, 1))]
    ids = list(chain.from_iterable(_ids([_loader(mix, phases=phases, **TEXT)], 8)))
    from_first = [each in first for each in ids]
    assert (sum(from_first[:24]), sum(from_first[24:48]), sum(from_first[48:96])) == (12, 0, 36)


def test_what_a_phase_left_out_goes_on_where_it_stood(small: Corpora) -> None:
    mix = [(small["tokens"], 1), (small["texts counted"], 1)]
    first = _sets(small["tokens"], 0, **TEXT)
    plain, paused = (
        [each for each in chain.from_iterable(_ids([_loader(mix, phases=phases, **TEXT)], 10)) if each in first]
        for phases in ((), [(24, [0, 1]), (48, [1, 1])])
    )
    assert 0 < len(paused) < len(plain)
    assert sorted(paused) == sorted(plain[: len(paused)])


def test_a_single_source_may_say_its_epochs_itself(small: Corpora) -> None:
    for name, settings_ in (("tokens", TOKENS), ("tar", ROWS)):
        given_by_source = _ids([_loader(Source(small[name], epochs=2), **settings_)])
        assert given_by_source == _ids([_loader(small[name], epochs=2, **settings_)])


def test_a_state_of_other_phases_or_epochs_is_refused_by_their_name(small: Corpora) -> None:
    with make(small, "phases") as loader:
        state = loader.state_dict()
    for changed, field in (((), "plan.phases"), ([PHASES[0], (26, [1, 2])], r"plan.phases\[1\].after_samples")):
        with make(small, "phases", phases=changed) as other, pytest.raises(StateError, match=f"'{field}'"):
            other.load_state_dict(state)
    with make(small, "mix that ends") as loader:
        state = loader.state_dict()
    fewer = [Source(small["tar counted"], 3, epochs=1), Source(small["bad counted"], 1, epochs=1)]
    with _loader(fewer, seed=5, **ROWS) as other, pytest.raises(StateError, match=r"sources\[0\].epochs' .* is 2, but"):
        other.load_state_dict(state)


@pytest.mark.parametrize(
    ("phases", "told"),
    [
        ([(10, [1])], "phase 0 has 1 weights for 2 sources"),
        ([(10, [0, 0])], "phase 0 gives no source a weight"),
        ([(10, [1, -1])], "source 1 has weight -1"),
        ([(-1, [1, 1])], "phase 0 begins after -1 samples"),
        ([(1.5, [1, 1])], "phase 0 begins after 1.5 samples"),
        ([(10, [1, 1]), (10, [1, 2])], "phase 1 begins after 10 samples, and the one before it after 10"),
        ([{"after_samples": 3}], "phase 0 has after_samples"),
        ([7], "phase 0 is 7"),
    ],
)
def test_phases_that_cannot_be_are_refused_in_words(small: Corpora, phases: Any, told: str) -> None:
    with pytest.raises(PlanError, match=told):
        _loader([(small["tokens"], 1), (small["tokens"], 1)], phases=phases, **TOKENS)


def test_phases_of_one_source_are_refused(small: Corpora) -> None:
    with pytest.raises(PlanError, match="there is one source"):
        _loader(small["tokens"], phases=[(10, [1])], **TOKENS)


@pytest.mark.parametrize(
    ("corpus", "settings_", "told", "hint"),
    [
        ("texts counted", TEXT, "only the data tells how many sequences text gives", "tokenise the corpus"),
        ("tar", ROWS, "only the data tells how many samples it holds", "iostack index"),
    ],
)
def test_epochs_that_only_the_data_could_end_are_refused_in_a_mix(
    small: Corpora, corpus: str, settings_: dict[str, Any], told: str, hint: str
) -> None:
    with pytest.raises(PlanError, match=told) as caught:
        _loader([Source(small[corpus], epochs=1), Source(small[corpus])], **settings_)
    assert hint in caught.value.hint


def test_epochs_that_contradict_each_other_or_are_none_are_refused(small: Corpora) -> None:
    with pytest.raises(PlanError, match="epochs=2, and the loader 3"):
        _loader(Source(small["tokens"], epochs=2), epochs=3, **TOKENS)
    with pytest.raises(PlanError, match="epochs must be at least 1, not 0"):
        _loader([Source(small["tokens"], epochs=0), Source(small["tokens"])], **TOKENS)
    with pytest.raises(PlanError, match="a mix of sources has no epochs of its own"):
        _loader([Source(small["tokens"]), Source(small["tokens"])], epochs=1, **TOKENS)
