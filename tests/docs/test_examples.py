"""The scripts in examples/ run, and do what their texts say."""

from __future__ import annotations

import sys
from pathlib import Path

import pages
import pytest
import runs
from safetensors.numpy import load_file

LOOP = pages.ROOT / "examples" / "train_loop.py"


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return runs.write_corpus(tmp_path / "corpus")


def _loop(corpus: Path, steps: int, state: str) -> list[str]:
    command = [sys.executable, str(LOOP), str(corpus), "--steps", str(steps), "--state", state]
    return pages.run(command, cwd=corpus.parent).splitlines()


def test_a_loop_that_stops_and_goes_on_equals_one_that_never_stopped(corpus: Path) -> None:
    whole = _loop(corpus, 6, "whole")
    parts = [*_loop(corpus, 2, "parts"), *_loop(corpus, 6, "parts")]
    assert len(whole) == 6
    assert parts == whole
    assert (corpus.parent / "parts.json").read_text() == (corpus.parent / "whole.json").read_text()
    one, other = (load_file(corpus.parent / f"{name}.safetensors") for name in ("whole", "parts"))
    assert all((one[name] == other[name]).all() for name in one)


def test_a_loop_that_is_done_makes_no_step_and_keeps_its_state(corpus: Path) -> None:
    _loop(corpus, 3, "state")
    before = (corpus.parent / "state.json").read_text()
    assert _loop(corpus, 2, "state") == []
    assert (corpus.parent / "state.json").read_text() == before


def test_the_vision_model_learns_the_shapes_from_tar_shards(tmp_path: Path) -> None:
    command = [sys.executable, str(pages.ROOT / "examples" / "train_vision.py"), "drawings", "--steps", "60"]
    lines = pages.run(command, cwd=tmp_path).splitlines()
    assert [line.split()[1] for line in lines] == ["10", "20", "30", "40", "50", "60"]
    assert sorted(path.name for path in (tmp_path / "drawings").glob("*.tar")) == [f"{i:03d}.tar" for i in range(6)]
    assert float(lines[-1].split()[3]) < 0.5
    assert float(lines[0].split()[3]) > 0.7


def test_all_ways_of_attention_inside_documents_compute_the_same(corpus: Path) -> None:
    script = pages.ROOT / "examples" / "packed_attention.py"
    lines = pages.run([sys.executable, str(script), str(corpus), "--batches", "2"], cwd=corpus.parent).splitlines()
    assert len(lines) == 2
    for line in lines:
        _, documents, _, apart = line.split()
        assert int(documents) > 4
        assert float(apart) < 1e-12


def _lightning(corpus: Path, steps: int, checkpoint: str) -> list[str]:
    script = pages.ROOT / "examples" / "train_lightning.py"
    command = [
        sys.executable,
        "-W",
        "ignore",
        str(script),
        str(corpus),
        "--steps",
        str(steps),
        "--checkpoint",
        checkpoint,
    ]
    return [line for line in pages.run(command, cwd=corpus.parent).splitlines() if line.startswith("step")]


def test_a_lightning_trainer_goes_on_where_its_checkpoint_was_taken(corpus: Path) -> None:
    pytest.importorskip("lightning")
    whole = _lightning(corpus, 6, "whole.ckpt")
    assert len(whole) == 6
    assert [*_lightning(corpus, 2, "parts.ckpt"), *_lightning(corpus, 6, "parts.ckpt")] == whole


def _accelerate(corpus: Path, steps: int, state: str, processes: int) -> list[str]:
    script = [
        str(pages.ROOT / "examples" / "train_accelerate.py"),
        str(corpus),
        "--steps",
        str(steps),
        "--state",
        state,
    ]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *(launcher if processes > 1 else []), *script]
    return [line for line in pages.run(command, cwd=corpus.parent).splitlines() if line.startswith("step")]


@pytest.mark.slow
@pytest.mark.distributed
def test_an_accelerate_run_goes_on_on_another_number_of_processes(corpus: Path) -> None:
    pytest.importorskip("accelerate")
    whole = _accelerate(corpus, 6, "whole", 1)
    assert len(whole) == 6
    assert [*_accelerate(corpus, 2, "parts", 2), *_accelerate(corpus, 6, "parts", 1)] == whole
