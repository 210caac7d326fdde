"""A step that is damaged or incomplete is passed over, with a warning that names what is broken."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from iostack.errors import BrokenStepError, CheckpointError
from trainer.checkpoint import Checkpointer
from trainer.checkpoint.documents import RankFile, seal, unseal
from trainer.checkpoint.layout import StepId
from trainer.checkpoint.local_store import LocalStore
from trainer.checkpoint.manifest import read_index_file, read_manifest

from .steps import load, loaded_step, save_steps, tensors_of

NEWEST = [
    "manifests/2.1.json",
    "steps/2.1-1/rank-00000.json",
    "steps/2.1-1/index.json.zst",
    "steps/2.1-1/rank-00000-000.safetensors",
]


def flip(file: Path, at: float) -> None:
    data = bytearray(file.read_bytes())
    data[int(at * (len(data) - 1))] ^= 0x10
    file.write_bytes(data)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def become_a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def become_another_step(file: Path) -> None:
    file.write_bytes(Path(str(file).replace("2.1", "1.1").replace("1.1-1", "1.1-0")).read_bytes())


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two") / "checkpoints"
    save_steps(folder, 1, 2)
    return folder


@pytest.fixture
def folder(two_steps: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(two_steps, tmp_path / "copy"))


@pytest.mark.parametrize("at", [0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
@pytest.mark.parametrize("file", NEWEST)
def test_a_flipped_bit_anywhere_is_seen(folder: Path, file: str, at: float, caplog: pytest.LogCaptureFixture) -> None:
    flip(folder / file, at)
    restored = load(folder)
    assert restored is not None
    assert restored.step == 1
    assert len(restored.skipped) == 1
    assert file in restored.skipped[0]
    assert f"{restored.skipped[0]}; the step before it is used" in caplog.text


@pytest.mark.parametrize("damage", [truncate, empty, become_a_folder, become_another_step])
@pytest.mark.parametrize("file", NEWEST)
def test_a_file_that_is_not_what_was_saved_is_seen(folder: Path, file: str, damage: Callable[[Path], None]) -> None:
    saved = (folder / file).read_bytes()
    damage(folder / file)
    is_same = (folder / file).is_file() and (folder / file).read_bytes() == saved  # the index of equal layouts
    assert loaded_step(folder) == (2 if is_same else 1)


@pytest.mark.parametrize("file", NEWEST)
def test_a_file_that_leads_elsewhere_is_not_followed(folder: Path, file: str, tmp_path: Path) -> None:
    (folder / file).rename(tmp_path / "elsewhere")
    (folder / file).symlink_to(tmp_path / "elsewhere")
    assert loaded_step(folder) == 1


@pytest.mark.parametrize("file", NEWEST[1:])
def test_a_missing_file_is_named(folder: Path, file: str) -> None:
    (folder / file).unlink()
    restored = load(folder)
    assert restored is not None
    assert restored.step == 1
    assert f"{file} is missing" in restored.skipped[0]
    latest = Checkpointer(str(folder)).latest()
    assert latest is not None
    assert latest.step == 1


def test_a_changed_state_is_seen(folder: Path) -> None:
    file = folder / NEWEST[0]
    file.write_bytes(file.read_bytes().replace(b'"position":20', b'"position":21'))
    restored = load(folder)
    assert restored is not None
    assert "2.1.json is damaged: its digest does not fit its" in restored.skipped[0]


def test_a_rank_file_of_another_attempt_is_seen(folder: Path) -> None:
    file = folder / NEWEST[1]
    document = unseal(RankFile, file.read_bytes(), what="rank file")
    file.write_bytes(seal(document.model_copy(update={"attempt": 7})))
    restored = load(folder)
    assert restored is not None
    assert "rank-00000.json is damaged: its digest is not the one in the manifest" in restored.skipped[0]


def test_another_index_is_seen(folder: Path) -> None:
    store = LocalStore(str(folder))
    manifest = read_manifest(store, StepId(step=2, generation=1))
    with pytest.raises(BrokenStepError, match=r"index\.json\.zst is damaged"):
        read_index_file(store, manifest.model_copy(update={"index_digest": "0" * 32}))


@pytest.mark.parametrize("file", NEWEST[1:])
def test_a_step_with_a_short_file_is_not_the_latest(folder: Path, file: str) -> None:
    truncate(folder / file)
    latest = Checkpointer(str(folder)).latest()
    assert latest is not None
    assert latest.step == 1


def test_a_file_that_shrinks_while_it_is_read_is_seen(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read_range = LocalStore.read_range

    def shrunken(self: LocalStore, path: str, begin: int, end: int) -> bytearray:
        return read_range(self, path, begin, end)[: -1 if "2.1" in path else None]

    monkeypatch.setattr(LocalStore, "read_range", shrunken)
    restored = load(folder)
    assert restored is not None
    assert "rank-00000-000.safetensors ends at byte" in restored.skipped[0]


def test_a_lost_manifest_of_the_newest_step_is_told(folder: Path) -> None:
    (folder / "manifests/2.1.json").unlink()
    restored = load(folder)
    assert restored is not None
    assert restored.step == 1
    assert "manifests/2.1.json is missing" in restored.skipped[0]


def test_a_step_that_was_never_committed_does_not_exist(folder: Path) -> None:
    (folder / "manifests/2.1.json").unlink()
    (folder / "latest.json").write_text('{"generation":1,"step":1}')
    restored = load(folder)
    assert restored is not None
    assert (restored.step, restored.skipped) == (1, [])


@pytest.mark.parametrize("hint", ["", "[]", '{"step": []}', '{"step": 1e999, "generation": 1}', "[" * 5000])
def test_a_damaged_hint_is_ignored(folder: Path, hint: str) -> None:
    (folder / "latest.json").write_text(hint)
    restored = load(folder)
    assert restored is not None
    assert (restored.step, restored.skipped) == (2, [])


def test_no_usable_step_at_all_is_an_error(folder: Path) -> None:
    for file in folder.glob("steps/*/*.safetensors"):
        flip(file, 0.5)
    with pytest.raises(CheckpointError, match=re.escape("none of the 2 steps in")):
        load(folder)


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("layer.bias", torch.zeros(600), r"layer.bias was saved as BF16\[600\] and is F32\[600\] here"),
        ("moment", torch.zeros(4, dtype=torch.float64), r"moment was saved as F64\[200000\] and is F64\[4\] here"),
        ("extra", torch.zeros(4), "the step holds no tensor extra"),
    ],
)
def test_tensors_of_another_model_are_named(folder: Path, name: str, tensor: torch.Tensor, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        Checkpointer(str(folder)).load({**tensors_of(0), name: tensor})


def test_a_broken_step_in_the_middle_is_jumped(folder: Path) -> None:
    save_steps(folder, 3)
    flip(folder / "manifests/3.2.json", 0.5)
    flip(folder / "manifests/2.1.json", 0.5)
    assert loaded_step(folder) == 1


def test_a_store_that_fails_is_not_a_broken_step(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> bytes:
        raise TimeoutError(110, "Connection timed out")

    checkpoints = Checkpointer(str(folder))
    monkeypatch.setattr(checkpoints._store, "read_range", fail)
    with pytest.raises(CheckpointError, match="Connection timed out"):
        checkpoints.load(tensors_of(0))
