"""The state in a checkpoint may be anybody's: it is checked before anything acts on it."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from iostack.errors import CheckpointError
from trainer.checkpoint import Checkpointer
from trainer.saving import RunState
from trainer.settings import resolve_settings
from trainer.settings.show import plain_settings

STATE: dict[str, Any] = {
    "program": {"steps": 3, "backends": {}},
    "loader": {"plan": {"lanes": 64}, "position": 24},
    "threads": 2,
}


def test_the_state_of_a_run_is_taken_as_it_is():
    assert RunState.from_json(STATE) == RunState(STATE["program"], STATE["loader"], 2)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("threads", 10**6),
        ("threads", 0),
        ("threads", "2"),
        ("threads", True),
        ("threads", None),
        ("loader", [1]),
        ("loader.plan", None),
        ("loader.plan", "x"),
        ("loader.plan.lanes", 10**11),
        ("loader.plan.lanes", "x"),
        ("loader.plan.lanes", -1),
        ("loader.plan.lanes", 4.0),
        ("loader.plan.lanes", None),
        ("program", None),
        ("program.backends", 3),
        ("program.steps", "x"),
        ("program.steps", -1),
    ],
)
@pytest.mark.parametrize("is_missing", [False, True])
def test_a_foreign_or_hostile_state_is_refused_by_the_name_of_its_field(path, value, is_missing):
    state = copy.deepcopy(STATE)
    *tables, field = path.split(".")
    table = state
    for name in tables:
        table = table[name]
    if is_missing:
        del table[field]
    else:
        table[field] = value

    with pytest.raises(CheckpointError, match=f"not of a training run: state.{path} is ") as caught:
        RunState.from_json(state)
    assert caught.value.hint


@pytest.mark.parametrize("lanes", [10**11, "x"])
def test_a_run_refuses_to_go_on_from_such_a_checkpoint_in_one_line(run, lanes):
    checkpoints = Checkpointer(str(run.folder / "checkpoints"))
    checkpoints.begin({})
    state = {**STATE, "loader": {"plan": {"lanes": lanes}}}
    settings, _ = resolve_settings(file=run.settings)
    checkpoints.save(3, {}, state, settings=plain_settings(settings))

    ended = run.train("-s", "data.lanes=auto")

    assert ended.code == 1
    [error] = ended.errors
    assert error == (
        f"error: the checkpoint is not of a training run: state.loader.plan.lanes is {lanes!r},"
        " and must be a whole number from 1 to 1048576"
    )
