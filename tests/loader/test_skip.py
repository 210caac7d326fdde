"""Skip lists: what they name never comes, all else stays where it was, on any number of ranks."""

from __future__ import annotations

import json
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worker_transforms import is_long, shout

from iostack.errors import PlanError, SettingsError, StateError
from iostack.loader.order.skip_list import write_skip_list
from iostack.plan.identity import row_identities
from iostack.plan.indexed import IndexedPlan
from iostack.plan.skipping import SkipList, SkippingPlan
from iostack.testing import check_resume_at_every_step, take_steps

from .pipelines import Corpora, make

INDEXED = ("tokens", "rows counted", "bad rows counted")
BY_UNITS = ("texts", "texts counted", "rows")


def _ids(small: Corpora, pipeline: str, num_steps: int = 4, ranks: int = 1, **changes: Any) -> list[int]:
    loaders = [make(small, pipeline, rank, ranks, **changes) for rank in range(ranks)]
    found = [row["sample_ids"] for step in take_steps(loaders, num_steps) for row in step]
    for loader in loaders:
        loader.close()
    return found


@settings(derandomize=True, deadline=None, max_examples=80)
@given(
    counts=st.lists(st.integers(0, 12), min_size=1, max_size=5).filter(any),
    lanes=st.integers(1, 5),
    window=st.integers(2, 20),
    data=st.data(),
)
def test_a_plan_gives_the_next_of_the_window_in_the_place_of_what_it_skips(
    counts: list[int], lanes: int, window: int, data: st.DataObject
) -> None:
    shape: dict[str, Any] = {"seed": 3, "lanes": lanes, "window": window}
    plain = IndexedPlan(np.asarray(counts), **shape)
    rows = [(shard, row) for shard, count in enumerate(counts) for row in range(count)]
    listed = data.draw(st.sets(st.sampled_from(rows), max_size=len(rows) // 3))
    identity = {place: int(row_identities(1, *(np.asarray([each]) for each in place))[0]) for place in rows}
    skip = SkipList([identity[place] for place in listed])
    skipping = SkippingPlan(np.asarray(counts), source=1, skip=skip, **shape)
    for position in range(2 * sum(counts)):
        here = plain.locate(np.asarray([position]))
        others = plain.substitutes(position)
        choices = [(int(here.shards[0]), int(here.rows[0])), *zip(others.shards.tolist(), others.rows.tolist())]
        good = [place for place in choices if place not in listed]
        found = skipping.locate(np.asarray([position]))
        assert (int(found.shards[0]), int(found.rows[0])) not in listed
        assert [(int(found.shards[0]), int(found.rows[0]))] == good[:1] or not good


@pytest.mark.parametrize("pipeline", INDEXED)
def test_all_else_stays_where_it_was_where_counts_tell_the_order(small: Corpora, pipeline: str) -> None:
    whole = _ids(small, pipeline)
    listed = set(whole[3:20:4])
    found = _ids(small, pipeline, skip=listed)
    assert not listed & set(found)
    changed = [place for place, (old, new) in enumerate(zip(whole, found, strict=True)) if old != new]
    assert {whole[place] for place in changed if "bad" not in pipeline} <= listed
    assert listed <= {whole[place] for place in changed}


@pytest.mark.parametrize("pipeline", BY_UNITS)
def test_units_give_the_same_without_what_is_skipped(small: Corpora, pipeline: str) -> None:
    whole = _ids(small, pipeline, 1000, epochs=1, lanes=1)
    listed = set(whole[3:20:4])
    found = _ids(small, pipeline, 1000, epochs=1, lanes=1, skip=listed)
    assert found == [each for each in whole if each not in listed]


@pytest.mark.parametrize(
    "pipeline", [*INDEXED, *BY_UNITS, "mix of three", "phases of rows", "rows counted transformed"]
)
def test_resuming_at_every_step_equals_never_stopping(small: Corpora, pipeline: str) -> None:
    listed = _ids(small, pipeline)[::5]
    check_resume_at_every_step(
        lambda rank, ranks: make(small, pipeline, rank, ranks, skip=listed), num_steps=3, ranks=(1, 3)
    )
    assert not set(listed) & set(_ids(small, pipeline, 8, ranks=2, skip=listed))


def test_a_bad_sample_is_not_replaced_by_one_to_skip(small: Corpora) -> None:
    found = _ids(small, "bad rows counted", epochs=1, num_steps=100)
    substitutes = [each for each in found if found.count(each) > 1]
    assert substitutes
    skipping = _ids(small, "bad rows counted", epochs=1, num_steps=100, skip=substitutes)
    assert not set(substitutes) & set(skipping)


def test_a_file_skips_what_it_names_and_belongs_to_its_corpus(small: Corpora, tmp_path: Path) -> None:
    path = tmp_path / "skip.json"
    with make(small, "tokens") as loader:
        listed = next(iter(loader))["sample_ids"].tolist()[:3]
        samples = [{"sample_id": each, "source": 0, "shard": "0.bin", "row": 1} for each in listed]
        write_skip_list(path, samples, fingerprint=loader.plan.fingerprint, numbered_by=loader.plan.numbered_by())
    assert _ids(small, "tokens", skip=path) == _ids(small, "tokens", skip=listed)
    for pipeline, changes, field in (("texts", {}, "fingerprint"), ("tokens", {"seq_len": 8}, "seq_len")):
        with pytest.raises(SettingsError, match=f"was written for {field}") as caught:
            make(small, pipeline, skip=str(path), **changes)
        assert "--write-skip" in caught.value.hint


@pytest.mark.parametrize(
    ("pipeline", "changes", "field"),
    [
        ("tokens split", {"packing": "best_fit"}, "packing"),
        ("tokens split", {"packing": "none"}, "packing"),
        ("tokens split", {"seed": 6}, r"sources\[0\].seed"),
        ("texts counted", {"transforms": [shout]}, r"sources\[0\].transforms"),
        ("texts counted", {"filters": [is_long]}, r"sources\[0\].(kind|filters)"),
    ],
)
def test_a_file_is_refused_where_sequences_are_numbered_otherwise(
    small: Corpora, tmp_path: Path, pipeline: str, changes: dict[str, Any], field: str
) -> None:
    path = tmp_path / "skip.json"
    with make(small, pipeline) as loader:
        write_skip_list(
            path, [{"sample_id": 1}], fingerprint=loader.plan.fingerprint, numbered_by=loader.plan.numbered_by()
        )
    make(small, pipeline, skip=path).close()
    with pytest.raises(SettingsError, match=f"was written for {field}"):
        make(small, pipeline, skip=path, **changes)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, "cannot be read"),
        ("{", "cannot be read"),
        ("[]", "is no skip list"),
        ('{"version": 2}', "is no skip list"),
        ("[" * 100_000, "cannot be read"),
    ],
)
def test_a_file_that_is_no_skip_list_is_refused_in_one_line(
    small: Corpora, tmp_path: Path, text: str | None, told: str
) -> None:
    path = tmp_path / "skip.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SettingsError, match=told) as caught:
        make(small, "tokens", skip=path)
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("value", [1 << 63, 1.5, True, None, "7"])
def test_what_is_no_identity_is_refused(small: Corpora, tmp_path: Path, value: Any) -> None:
    with pytest.raises(SettingsError, match="which is no sample_id"):
        make(small, "tokens", skip=[value])
    with make(small, "tokens") as loader:
        table = {"version": 1, "fingerprint": loader.plan.fingerprint, "numbered_by": loader.plan.numbered_by()}
    path = tmp_path / "skip.json"
    path.write_text(json.dumps(table | {"samples": [{"sample_id": value}]}))
    with pytest.raises(SettingsError, match="which is no sample_id"):
        make(small, "tokens", skip=path)


def test_a_run_goes_on_before_a_spike_without_its_samples(small: Corpora, caplog: pytest.LogCaptureFixture) -> None:
    with make(small, "tokens") as loader:
        steps = islice(loader, 5)
        before = [next(steps)["sample_ids"].tolist() for _ in range(2)]
        state = loader.state_dict()
        spike = [batch["sample_ids"].tolist() for batch in steps][1]
    caplog.set_level("INFO", "iostack.loader")
    with make(small, "tokens", skip=spike) as resumed:
        resumed.load_state_dict(state)
        after = [batch["sample_ids"].tolist() for batch in islice(resumed, 3)]
    assert "the skip list is another one than before: it holds from position 24 on" in caplog.text
    assert [*before, *after] == [batch["sample_ids"].tolist() for batch in islice(make(small, "tokens", skip=spike), 5)]
    assert not set(spike) & {each for batch in after for each in batch}


def test_units_refuse_a_state_of_another_skip_list_but_not_of_the_same_in_another_order(small: Corpora) -> None:
    listed = _ids(small, "tokens")[:4]
    with make(small, "tokens", skip=listed) as loader:
        state = loader.state_dict()
    with make(small, "tokens", skip=listed[::-1] * 2) as same:
        same.load_state_dict(state)
    listed = _ids(small, "texts")[:4]
    with make(small, "texts", skip=listed) as loader:
        state = loader.state_dict()
    for other in (listed[1:], ()):
        with make(small, "texts", skip=other) as loader, pytest.raises(StateError, match=r"'plan\.skip'"):
            loader.load_state_dict(state)


@pytest.mark.parametrize("pipeline", ["tokens", "texts", "rows", "rows counted"])
def test_a_list_of_all_samples_is_an_error_not_a_hang(small: Corpora, pipeline: str) -> None:
    listed = set(chain.from_iterable(batch["sample_ids"].tolist() for batch in make(small, pipeline, epochs=1)))
    listed |= set(_ids(small, pipeline, 60)) if pipeline == "texts" else set()
    with make(small, pipeline, skip=listed) as loader, pytest.raises(PlanError, match="skip"):
        list(islice(loader, 200))
