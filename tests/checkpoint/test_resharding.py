"""A step saved on any layout of ranks fills the tensors of any other, bit by bit."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainer.checkpoint import Checkpointer

from .layouts import LAYOUTS, SHAPES, check_equal, lay_out, whole
from .ranks import run_ranks

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tensor set saved in every layout on 2 and on 4 ranks."""
    folder = tmp_path_factory.mktemp("resharding")
    for world in (2, 4):
        run_ranks("save_layouts", world, folder, str(world))
    return folder


@pytest.mark.parametrize(("saved_on", "loaded_on"), [(4, 2), (2, 4), (4, 4)])
def test_every_layout_loads_into_every_other(saved: Path, saved_on: int, loaded_on: int) -> None:
    assert run_ranks("load_layouts", loaded_on, saved, str(saved_on)) == [len(LAYOUTS) ** 2] * loaded_on


@pytest.mark.parametrize("saved_on", [2, 4])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_process_loads_what_several_saved(saved: Path, saved_on: int, layout: str) -> None:
    tensors = lay_out("plain", empty=True)
    checkpoints = Checkpointer(f"{saved}/{saved_on}-{layout}")
    restored = checkpoints.load(tensors)
    assert restored is not None
    assert restored.state == {"layout": layout}
    assert restored.rank_state is None
    check_equal(tensors)


@pytest.mark.parametrize("saved_on", [2, 4])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_several_ranks_hold_is_stored_once(saved: Path, saved_on: int, layout: str) -> None:
    folder = saved / f"{saved_on}-{layout}"
    data = sum(whole(name).nbytes for name in SHAPES)
    files = list(folder.glob("steps/*/*.safetensors"))
    headers = sum(8 + int.from_bytes(file.read_bytes()[:8], "little") for file in files)
    assert sum(file.stat().st_size for file in files) - headers == data
    assert len(files) > 1, "what is replicated is spread over the ranks"


def test_a_model_and_its_optimizer_move_between_parallel_layouts(tmp_path: Path) -> None:
    num_tensors = run_ranks("train", 4, tmp_path)
    assert num_tensors == [12 * 4] * 4, "twelve parameters, two moments and a step count for each"
