"""One run, one lineage: who may write, and which of the saved steps count."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from iostack.errors import CheckpointError
from trainer.checkpoint import Checkpointer
from trainer.checkpoint.generation import begin_generation
from trainer.checkpoint.layout import StepId
from trainer.checkpoint.lineage import lineage
from trainer.checkpoint.local_store import LocalStore

from .steps import loaded_step, save_steps, tensors_of


def steps_of(folder: Path) -> list[str]:
    return [str(step) for step, _ in lineage(LocalStore(str(folder)))]


def test_every_start_takes_the_next_generation(tmp_path: Path) -> None:
    assert [Checkpointer(str(tmp_path)).begin({"seed": 1}) for _ in range(3)] == [1, 2, 3]


def test_processes_that_start_at_once_take_different_generations(tmp_path: Path) -> None:
    program = (
        "import sys; from trainer.checkpoint import Checkpointer; c = Checkpointer(sys.argv[1]); "
        "sys.stdin.readline(); print([c.begin({}) for _ in range(20)])"
    )
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    outputs = [racer.communicate("go\n", timeout=100)[0] for racer in racers]
    taken = [generation for output in outputs for generation in json.loads(output)]
    assert sorted(taken) == list(range(1, 41))


@pytest.mark.parametrize(
    ("run", "message"),
    [
        ({"data": {"seed": 2, "lanes": 4}, "model": "a"}, "data.seed is 1 there and 2 here"),
        ({"data": {"seed": 1, "lanes": 4}, "model": "b"}, 'model is "a" there and "b" here'),
        ({"data": {"seed": 1}, "model": "a"}, "data.lanes is 4 there and absent here"),
        ({"data": {"seed": 1, "lanes": 4}, "model": "a", "new": True}, "new is absent there and true here"),
        ({"data": {"seed": 1.0, "lanes": 4}, "model": "a"}, "data.seed is 1 there and 1.0 here"),
    ],
)
def test_another_run_is_refused_by_the_name_of_the_field(tmp_path: Path, run: dict[str, Any], message: str) -> None:
    checkpoints = Checkpointer(str(tmp_path))
    checkpoints.begin({"data": {"seed": 1, "lanes": 4}, "model": "a"})
    with pytest.raises(CheckpointError, match=message):
        checkpoints.begin(run)


def test_saving_needs_a_generation(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"begin\(\) was not called"):
        Checkpointer(str(tmp_path)).save(1, {}, {}, settings={})


def test_a_start_saves_a_step_once(tmp_path: Path) -> None:
    checkpoints = Checkpointer(str(tmp_path))
    checkpoints.begin({})
    checkpoints.save(5, {}, {}, settings={})
    for step in (5, 4):
        with pytest.raises(CheckpointError, match="saved step 5 already"):
            checkpoints.save(step, {}, {}, settings={})


def test_a_superseded_run_cannot_save(tmp_path: Path) -> None:
    older, newer = Checkpointer(str(tmp_path)), Checkpointer(str(tmp_path))
    older.begin({})
    older.save(1, tensors_of(1), {"position": 10}, settings={})
    newer.begin({})
    with pytest.raises(CheckpointError, match=r"generation 2 has taken over from generation 1 in .* \(process \d+\)"):
        older.save(2, tensors_of(2), {"position": 20}, settings={})
    assert loaded_step(tmp_path) == 1


def test_a_run_superseded_during_a_save_does_not_commit(tmp_path: Path) -> None:
    older, newer = Checkpointer(str(tmp_path)), Checkpointer(str(tmp_path))
    older.begin({})

    class Tensor(torch.Tensor):
        """Its bytes are asked for in the middle of a save."""

        def detach(self) -> torch.Tensor:
            newer.begin({})
            return torch.zeros(3)

    with pytest.raises(CheckpointError, match="generation 2 has taken over"):
        older.save(1, {"w": torch.zeros(3).as_subclass(Tensor)}, {}, settings={})
    assert newer.latest() is None
    assert not list(tmp_path.glob("steps/*"))


def test_a_run_superseded_just_before_its_commit_does_not_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = Checkpointer(str(tmp_path))
    older.begin({})
    create = LocalStore.create

    def then_superseded(self: LocalStore, path: str, data: bytes) -> bool:
        if path.endswith("rank-00000.json"):
            begin_generation(self, {}, world=1)
        return create(self, path, data)

    monkeypatch.setattr(LocalStore, "create", then_superseded)
    with pytest.raises(CheckpointError, match="generation 2 has taken over"):
        older.save(1, tensors_of(1), {}, settings={})
    assert older.latest() is None


def test_what_an_abandoned_start_saved_is_off_the_lineage(tmp_path: Path) -> None:
    save_steps(tmp_path, 10, 20, 30)
    data = next(tmp_path.glob("steps/30.1*/*.safetensors"))
    content = data.read_bytes()
    data.write_bytes(content[:-1])
    save_steps(tmp_path, 25)  # goes on from step 20
    save_steps(tmp_path, 40)
    data.write_bytes(content)
    assert steps_of(tmp_path) == ["40.3", "25.2", "20.1", "10.1"], "30.1 is newer than 25.2 and not its child"
    assert loaded_step(tmp_path) == 40


def test_a_parent_counts_more_than_what_lies_between(tmp_path: Path) -> None:
    save_steps(tmp_path, 10, 20)
    data = next(tmp_path.glob("steps/20.1*/*.safetensors"))
    content = data.read_bytes()
    data.write_bytes(content[:-1])
    save_steps(tmp_path, 30)  # goes on from step 10
    data.write_bytes(content)
    assert steps_of(tmp_path) == ["30.2", "10.1"]


def test_a_lineage_goes_on_past_what_is_gone(tmp_path: Path) -> None:
    save_steps(tmp_path, 10, 20)
    save_steps(tmp_path, 30, 40)
    (tmp_path / "manifests/20.1.json").unlink()
    (tmp_path / "manifests/40.2.json").write_text("{}")
    assert steps_of(tmp_path) == ["40.2", "30.2", "10.1"]


def test_foreign_names_are_no_steps(tmp_path: Path) -> None:
    save_steps(tmp_path, 10)
    for name in ("11.json", "012.1.json", "13.1.json.bak", "14.-1.json", "९.1.json"):
        (tmp_path / "manifests" / name).write_text("{}")
    assert steps_of(tmp_path) == ["10.1"]


def test_two_commits_of_one_step_cannot_both_be_it(tmp_path: Path) -> None:
    one, other = (Checkpointer(str(tmp_path)) for _ in range(2))
    one.begin({})
    other.generation = one.generation
    other._num_attempts = 1
    one.save(1, tensors_of(1), {"position": 10}, settings={})
    with pytest.raises(CheckpointError, match=r"manifests/1\.1\.json exists already and is another attempt's"):
        other.save(1, tensors_of(2), {"position": 10}, settings={})
    assert loaded_step(tmp_path) == 1


def test_steps_are_ordered_by_generation_first() -> None:
    assert max(StepId(step=30, generation=1), StepId(step=20, generation=2)).step == 20


def test_a_damaged_run_file_says_how_to_go_on(tmp_path: Path) -> None:
    save_steps(tmp_path, 1)
    (tmp_path / "run.json").write_bytes(b"{}")
    with pytest.raises(CheckpointError, match=r"run\.json is damaged") as caught:
        save_steps(tmp_path, 2)
    assert "delete it" in caught.value.hint
