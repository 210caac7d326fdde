"""Which steps stay, and in which order the others go."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainer.checkpoint import Checkpointer
from trainer.checkpoint.local_store import LocalStore

from .steps import loaded_step, save_steps, tensors_of


def manifests(folder: Path) -> list[str]:
    return sorted(file.stem for file in folder.glob("manifests/*.json"))


def attempts(folder: Path) -> list[str]:
    return sorted(path.name.partition("-")[0] for path in folder.glob("steps/*"))


@pytest.mark.parametrize(
    ("keep", "kept"), [(0, ["1.1", "2.1", "3.1", "4.1"]), (1, ["4.1"]), (3, ["2.1", "3.1", "4.1"])]
)
def test_the_newest_steps_stay(tmp_path: Path, keep: int, kept: list[str]) -> None:
    save_steps(tmp_path, 1, 2, 3, 4, keep=keep)
    assert manifests(tmp_path) == kept
    Checkpointer(str(tmp_path)).begin({"model": "test"})
    assert attempts(tmp_path) == kept


def test_the_step_that_was_restored_stays_since_it_is_known_to_be_readable(tmp_path: Path) -> None:
    save_steps(tmp_path, 1, 2, keep=2)
    save_steps(tmp_path, 3, 4, 5, 6, keep=2)
    assert manifests(tmp_path) == ["2.1", "5.2", "6.2"]
    save_steps(tmp_path, 7, 8, keep=2)
    assert manifests(tmp_path) == attempts(tmp_path) == ["6.2", "7.3", "8.3"]


def test_the_data_of_a_step_outlives_its_manifest_until_the_next_save(tmp_path: Path) -> None:
    checkpoints = Checkpointer(str(tmp_path), keep=1)
    checkpoints.begin({})
    there = []
    for step in (1, 2, 3):
        checkpoints.save(step, tensors_of(step), {}, settings={})
        there.append((manifests(tmp_path), attempts(tmp_path)))
    assert there == [(["1.1"], ["1.1"]), (["2.1"], ["1.1", "2.1"]), (["3.1"], ["2.1", "3.1"])]


def test_an_incomplete_step_does_not_count(tmp_path: Path) -> None:
    checkpoints = Checkpointer(str(tmp_path), keep=2)
    checkpoints.begin({})
    for step in (1, 2):
        checkpoints.save(step, tensors_of(step), {}, settings={})
    next(tmp_path.glob("steps/2.1*/*.safetensors")).unlink()
    checkpoints.save(3, tensors_of(3), {}, settings={})
    assert manifests(tmp_path) == ["1.1", "3.1"]


def test_a_manifest_goes_before_its_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    delete_folder = LocalStore.delete_folder

    def watched(self: LocalStore, path: str) -> None:
        seen.append(path)
        step = path.removeprefix("steps/").partition("-")[0]
        assert not (tmp_path / f"manifests/{step}.json").exists()
        delete_folder(self, path)

    monkeypatch.setattr(LocalStore, "delete_folder", watched)
    save_steps(tmp_path, 1, 2, 3, keep=1)
    assert seen == ["steps/1.1-0"]
    Checkpointer(str(tmp_path)).begin({"model": "test"})
    assert seen == ["steps/1.1-0", "steps/2.1-1"]


def test_a_new_start_deletes_what_dead_ones_left_unfinished(tmp_path: Path) -> None:
    save_steps(tmp_path, 1)
    (tmp_path / "steps/2.1-1").mkdir()
    (tmp_path / "steps/2.1-1/rank-00000-000.safetensors").write_bytes(b"half")
    (tmp_path / "steps/notes").mkdir()
    Checkpointer(str(tmp_path)).begin({"model": "test"})
    assert sorted(path.name for path in tmp_path.glob("steps/*")) == ["1.1-0", "notes"]


def test_a_superseded_start_deletes_nothing(tmp_path: Path) -> None:
    save_steps(tmp_path, 1, 2)
    older = Checkpointer(str(tmp_path), keep=1)
    older.begin({"model": "test"})
    Checkpointer(str(tmp_path)).begin({"model": "test"})
    assert manifests(tmp_path) == ["1.1", "2.1"]


def test_what_cannot_be_deleted_does_not_stop_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(self: LocalStore, path: str) -> None:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(LocalStore, "delete_folder", refuse)
    save_steps(tmp_path, 1, 2, 3, keep=1)
    assert "could not be deleted" in caplog.text
    monkeypatch.undo()
    save_steps(tmp_path, 4, keep=1)
    assert attempts(tmp_path) == manifests(tmp_path) == ["3.1", "4.2"]
    assert loaded_step(tmp_path) == 4


def test_latest_json_names_the_newest_step(tmp_path: Path) -> None:
    checkpoints = Checkpointer(str(tmp_path))
    checkpoints.begin({})
    checkpoints.save(7, tensors_of(7), {}, settings={})
    assert (tmp_path / "latest.json").read_text() == '{"generation":1,"step":7}'
