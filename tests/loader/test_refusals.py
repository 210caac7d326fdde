"""What does not fit is refused by name, before anything has changed."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import corpora
import pytest

import iostack
from iostack.corpus.contracts import Sample
from iostack.corpus.index import build_manifest
from iostack.errors import PlanError, SettingsError, StateError, UsageError
from iostack.loader.order.planned import Source

from .pipelines import Corpora, decode_number, make, shout
from .test_text import Wide


def whisper(sample: Sample) -> Sample:
    return sample | {"text": sample["text"].lower()}


@pytest.mark.parametrize(
    ("pipeline", "changes", "field", "values"),
    [
        ("tokens", {"seed": 6}, "plan.seed", "is 5, but here it is 6"),
        ("tokens", {"lanes": 8}, "plan.lanes", "is 4, but here it is 8"),
        ("tokens", {"seq_len": 15}, "plan.seq_len", "is 16, but here it is 15"),
        ("tokens", {"window_bytes": 3000}, r"plan.sources\[0\].window", "but here it is"),
        ("texts", {"tokenizer": Wide([1])}, r"plan.sources\[0\].tokenizer", "is 'bytes', but here it is 'wide'"),
        ("texts", {"transforms": [shout]}, r"plan.sources\[0\].transforms", "is None, but here it is"),
        ("texts transformed", {"transforms": [whisper]}, r"transforms\[0\]", "is .*shout', but here it is .*whisper"),
        ("texts", {"seq_len": None}, r"plan.seq_len", "is 16, but here it is None"),
    ],
)
def test_a_state_of_another_plan_is_refused_by_the_name_of_the_field(
    small: Corpora, pipeline: str, changes: dict[str, Any], field: str, values: str
) -> None:
    with make(small, pipeline) as saving, make(small, pipeline, **changes) as loader:
        next(iter(saving))
        state = json.loads(json.dumps(saving.state_dict()))
        _assert_refused(loader, state, f"{field}.* {values}")


def test_a_state_of_another_text_column_is_refused(small: Corpora) -> None:
    state = make(small, "texts").state_dict()
    with pytest.raises(StateError, match=r"text_column' .* is 'text', but here it is 'body'"):
        make(small, "texts", text_column="body").load_state_dict(state)


def test_a_state_of_other_weights_is_refused(small: Corpora) -> None:
    first, second = small["tokens"], small["texts"]
    settings: dict[str, Any] = {"batch_size": 4, "seq_len": 16, "lanes": 4}
    state = iostack.Loader([(first, 2), (second, 1)], **settings).state_dict()
    _assert_refused(iostack.Loader([(first, 4), (second, 1)], **settings), state, r"plan.weights\[0\].* is 2, .* 4")
    _assert_refused(iostack.Loader([(second, 2), (first, 1)], **settings), state, "fingerprint")


def test_a_state_of_another_corpus_is_refused_and_one_of_a_copy_is_not(small: Corpora, tmp_path: Path) -> None:
    for name in ("copy", "other"):
        for shard in range(5):
            corpora.write_jsonl(tmp_path / name / f"{shard}.jsonl", corpora.texts(30, 30 * shard + (name == "other")))
        (tmp_path / name / "9-empty.jsonl").touch()
    state = make(small, "texts").state_dict()
    settings: dict[str, Any] = {"batch_size": 12, "lanes": 4, "seed": 5, "seq_len": 16, "window_bytes": 2000}
    iostack.Loader(iostack.open_corpus(tmp_path / "copy"), **settings).load_state_dict(state)
    (tmp_path / "copy" / "0.jsonl").write_text('{"text": "changed"}\n')
    loader = iostack.Loader(iostack.open_corpus(tmp_path / "copy"), **settings)
    _assert_refused(loader, state, "'fingerprint'")


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        ({"version": 1}, "'version' of the loader state is 1, but here it is 2"),
        ({"position": -1}, "'position' .* -1"),
        ({"position": 1.0}, "'position'"),
        ({"position": True}, "'position'"),
        ({"position": 1 << 80}, "'position'"),
        ({"position": None}, "'position'"),
        ({"plan": None}, "'plan'"),
        ({"cursors": {"0": {"0": [1, 2]}}}, "'cursors'"),
        ({"cursors": {"0": {"0": [1, 2, -3]}}}, "'cursors'"),
        ({"cursors": {"0": {"0": [1 << 70, 0, 0]}}}, "'cursors'"),
        ({"cursors": {"0": {"0": [0, 0, 9000]}}}, "'cursors' .* lane 0 at output 9000"),
        ({"cursors": {"zero": {}}}, "'cursors'"),
        ({"cursors": [1]}, "'cursors'"),
        ({"cursors": {}, "position": 1200}, "'cursors' .* position 1200 needs 300"),
    ],
)
def test_a_damaged_state_is_refused(small: Corpora, damage: dict[str, Any], told: str) -> None:
    with make(small, "texts") as loader:
        _assert_refused(loader, loader.state_dict() | damage, told)


@pytest.mark.parametrize("state", [None, [], "state", {}])
def test_what_is_no_state_is_refused(small: Corpora, state: Any) -> None:
    with make(small, "texts") as loader, pytest.raises(StateError):
        loader.load_state_dict(state)


def _assert_refused(loader: iostack.Loader, state: dict[str, Any], told: str) -> None:
    """Assert that the state is refused, and that the loader and its iterator go on as if nothing had been."""
    batches = iter(loader)
    next(batches)
    before = copy.deepcopy(loader.state_dict())
    with pytest.raises(StateError, match=told):
        loader.load_state_dict(state)
    assert loader.state_dict() == before
    next(batches)
    loader.close()


def test_states_of_different_steps_or_runs_do_not_merge(small: Corpora) -> None:
    with make(small, "texts") as one, make(small, "texts") as other, make(small, "texts", seed=7) as third:
        next(iter(one))
        with pytest.raises(StateError, match="'position'"):
            iostack.merge_states([one.state_dict(), other.state_dict()])
        with pytest.raises(StateError, match=r"'plan\.seed'"):
            iostack.merge_states([other.state_dict(), third.state_dict()])
    with pytest.raises(StateError, match="no loader states"):
        iostack.merge_states([])
    for states in ([None], 5, "ab"):
        with pytest.raises(StateError, match="a list of tables"):
            iostack.merge_states(states)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"batch_size": 0}, "batch_size 0"),
        ({"batch_size": -4}, "batch_size -4"),
        ({"seq_len": 0}, "seq_len"),
        ({"seq_len": -1}, "seq_len"),
        ({"epochs": 0}, "epochs"),
        ({"lanes": 0}, "lanes"),
        ({"threads": 0}, "threads"),
        ({"max_bad_samples": -1}, "max_bad_samples"),
        ({"rank": 2, "ranks": 2}, "rank 2 of 2"),
        ({"rank": -1, "ranks": 2}, "rank -1"),
        ({"ranks": 0}, "0 ranks"),
    ],
)
def test_impossible_sizes_are_refused(small: Corpora, changes: dict[str, Any], told: str) -> None:
    with pytest.raises(PlanError, match=told):
        make(small, "texts", **changes)


def test_a_batch_size_that_ranks_do_not_divide_is_refused_with_the_nearest_sizes(small: Corpora) -> None:
    with pytest.raises(PlanError, match="batch_size 10 is not divisible by 4") as caught:
        make(small, "texts", batch_size=10, ranks=4)
    assert "8 or 12" in caught.value.hint


@pytest.mark.parametrize("changes", [{"window_bytes": "much"}, {"lookahead_bytes": -1}, {"window_bytes": "1 PB"}])
def test_sizes_that_are_none_are_refused(small: Corpora, changes: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match="is not a size"):
        make(small, "texts", **changes)


@pytest.mark.parametrize("weight", [0, -1, float("nan"), float("inf"), "2"])
def test_weights_that_are_no_positive_numbers_are_refused(small: Corpora, weight: Any) -> None:
    with pytest.raises(PlanError, match="source 1 has weight"):
        iostack.Loader([(small["texts"], 1), (small["tokens"], weight)], batch_size=1, seq_len=4)


@pytest.mark.parametrize("given", [[], "corpus", [3], [("a", 1)], [None]])
def test_what_is_no_corpus_is_refused(given: Any) -> None:
    with pytest.raises(UsageError):
        iostack.Loader(given, batch_size=1)


def test_unknown_transforms_and_options_are_refused(small: Corpora) -> None:
    with pytest.raises(SettingsError, match="'keeps'") as caught:
        make(small, "rows", transforms=["keeps"])
    assert "'keep'" in caught.value.hint
    with pytest.raises(SettingsError, match=r"'keep' does not take these options.*colums"):
        make(small, "rows", transforms=[{"name": "keep", "colums": []}])
    with pytest.raises(SettingsError, match="JSON cannot hold"):
        make(small, "rows", transforms=[{"name": "keep", "columns": {1, 2}}])


def test_transforms_with_options_resume_through_json(small: Corpora) -> None:
    table = {"name": "keep", "columns": ("__key__", "json")}
    with make(small, "rows", transforms=[table]) as saving, make(small, "rows", transforms=[table]) as loader:
        batch = next(iter(saving))
        assert batch.keys() == {"__key__", "json", "valid", "sample_ids"}
        loader.load_state_dict(json.loads(json.dumps(saving.state_dict())))
        with make(small, "rows", transforms=[table | {"columns": ("json",)}]) as other:
            _assert_refused(other, saving.state_dict(), r"columns")


def test_transforms_of_a_source_run_before_those_of_the_loader(small: Corpora) -> None:
    source = Source(small["tar"], transforms=[decode_number])
    with iostack.Loader([source], batch_size=4, transforms=[lambda sample: {"twice": 2 * sample["number"]}]) as loader:
        assert (next(iter(loader))["twice"] % 2 == 0).all()


def test_a_loader_is_not_copied_to_other_processes(small: Corpora) -> None:
    with make(small, "texts") as loader, pytest.raises(UsageError, match="cannot be copied") as caught:
        pickle.dumps(loader)
    assert "state_dict" in caught.value.hint


@pytest.mark.parametrize("name", ["WORLD_SIZE", "RANK"])
def test_an_environment_that_says_no_number_is_refused(
    small: Corpora, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "x")
    with pytest.raises(PlanError, match=f"the environment has {name}='x'"):
        iostack.Loader(small["tokens"], batch_size=2, seq_len=8)


@pytest.mark.parametrize("lanes", [0, 10**11])
def test_lanes_that_no_memory_holds_are_refused(small: Corpora, lanes: int) -> None:
    with pytest.raises(PlanError, match=f"lanes must be 1 to 1048576, not {lanes}"):
        make(small, "tokens", lanes=lanes)


def test_a_corpus_that_was_indexed_since_is_refused_with_that_hint(tmp_path: Path) -> None:
    corpora.write_jsonl(tmp_path / "a.jsonl", corpora.texts(50))
    state = iostack.Loader(iostack.open_corpus(tmp_path), batch_size=2).state_dict()
    build_manifest(tmp_path)
    with pytest.raises(StateError, match="fingerprint") as caught:
        iostack.Loader(iostack.open_corpus(tmp_path), batch_size=2).load_state_dict(state)
    assert "iostack index" in caught.value.hint
