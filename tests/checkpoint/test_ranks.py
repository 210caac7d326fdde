"""All ranks succeed or all fail alike, and none waits for one that gave up."""

from __future__ import annotations

from pathlib import Path

import pytest

from .ranks import run_ranks

pytestmark = pytest.mark.distributed


def test_a_failure_on_one_rank_is_the_same_error_on_all(tmp_path: Path) -> None:
    ranks = run_ranks("failures", 2, tmp_path)
    assert ranks[0] == ranks[1]
    told = ranks[0]["told"]
    assert "tensor w should be the same on ranks 0 and 1 and differs" in told["differs"]
    assert "tensor w is F32[6] on rank 0 and F32[7] on rank 1" in told["other shape"]
    assert "the ranks are at different steps: [2, 3]" in told["other step"]
    assert "step 2 was not saved: rank 1: state.bad is a Tensor" in told["state"]
    assert "rank 1: w is a int among the tensors" in told["no tensor"]
    assert "step 2 was not saved: rank 0: " in told["disk"]
    assert f"{tmp_path}/failures/steps" in told["disk"]
    assert ranks[0]["restored"] == 1, "the step before stays loadable"
    assert ranks[0]["saved"] == 2, "and the same run can save again"


def test_damage_that_one_rank_meets_makes_all_fall_back(tmp_path: Path) -> None:
    run_ranks("save_rows", 2, tmp_path, "run")
    (file,) = tmp_path.glob("run/steps/2.1*/rank-00001-000.safetensors")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    ranks = run_ranks("fall_back", 2, tmp_path, "run")
    assert ranks[0] == ranks[1]
    assert ranks[0]["step"] == 1
    assert f"rank 1: {file} is damaged: the crc32 of block" in ranks[0]["skipped"][0]


def test_a_rank_that_dies_does_not_hang_the_others(tmp_path: Path) -> None:
    ranks = run_ranks("lost_rank", 2, tmp_path)
    assert "another rank did not answer" in ranks[0]
