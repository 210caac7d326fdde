"""Every parallelism, alone and combined, gives the losses, norms and gradients of one process."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainer import cases
from tests.trainer.processes import run_ranks

TOLERANCE = 1e-10
pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    return run_ranks(tmp_path_factory.mktemp("two"), 2, "parity")


@pytest.fixture(scope="module")
def four_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    return run_ranks(tmp_path_factory.mktemp("four"), 4, "parity")


@cache
def one_process(tied: bool, clip: float | None) -> dict[str, Any]:
    program = cases.Case("one process", tied=tied, clip=clip).build()
    initial = {name: tensor.clone() for name, tensor in program.tensors().items()}
    records = cases.make_steps(program, range(cases.STEPS))
    return {"initial": initial, "records": records, "final": program.tensors(), "sample": cases.generated_by(program)}


def assert_equals_one_process(case: cases.Case, ranks: list[Any]) -> None:
    expected = one_process(case.tied, case.clip)
    covered = set()
    if not case.axes.keys() & {"pp", "dp_shard"}:
        assert ranks[0][case.name]["sample"] == expected["sample"]
    for rank in ranks:
        result = rank[case.name]
        for name, tensor in result["initial"].items():
            assert torch.equal(tensor, expected["initial"][name]), name
        for name, tensor in result["final"].items():
            assert (tensor - expected["final"][name]).abs().max().item() <= 1e-8, name
        covered |= result["final"].keys()
        for step, (ours, theirs) in enumerate(zip(result["records"], expected["records"], strict=True)):
            where = f"{case.name}, step {step}"
            assert ours["num_valid"] == theirs["num_valid"], where
            assert ours["loss"] == pytest.approx(theirs["loss"], abs=TOLERANCE), where
            assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], abs=TOLERANCE), where
            assert ours["evaluated"] == pytest.approx(theirs["evaluated"], abs=TOLERANCE * theirs["num_valid"]), where
            for name, gradient in ours["gradients"].items():
                difference = (gradient - theirs["gradients"][name]).abs().max().item()
                assert difference <= TOLERANCE, f"{where}: gradient of {name}"
    assert covered == expected["final"].keys()


@pytest.mark.parametrize("case", cases.TWO_RANKS, ids=lambda case: case.name)
def test_two_ranks_equal_one_process(case: cases.Case, two_ranks: list[Any]) -> None:
    assert_equals_one_process(case, two_ranks)


@pytest.mark.parametrize("case", cases.FOUR_RANKS, ids=lambda case: case.name)
def test_four_ranks_equal_one_process(case: cases.Case, four_ranks: list[Any]) -> None:
    assert_equals_one_process(case, four_ranks)


@pytest.mark.parametrize(
    "case",
    [cases.Case("accumulation", microbatch_size=1), cases.Case("recompute", use=("recompute",))],
    ids=lambda case: case.name,
)
def test_one_process_equals_itself_with(case: cases.Case) -> None:
    program = case.build()
    initial = {name: tensor.clone() for name, tensor in program.tensors().items()}
    result = {"initial": initial, "records": cases.make_steps(program, range(cases.STEPS))}
    result |= {"final": program.tensors(), "sample": cases.generated_by(program)}
    assert_equals_one_process(case, [{case.name: result}])


def test_an_illegal_request_is_refused_alike_on_every_rank(four_ranks: list[Any]) -> None:
    refusals = {rank["refusal"] for rank in four_ranks}
    assert len(refusals) == 1
    assert "ddp gives wrong or partial gradients together with axis pp" in refusals.pop()


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_a_resumed_run_has_the_same_bits_as_one_that_never_stopped(world_size: int, tmp_path: Path) -> None:
    for rank in run_ranks(tmp_path, world_size, "resume"):
        for layout, losses in rank.items():
            assert losses["stopped"] == losses["straight"], layout
