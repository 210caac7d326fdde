"""A program starts from the same values everywhere, steps, evaluates, generates, and gives and takes its tensors."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from iostack.errors import PluginError, RunError, SettingsError, StateError
from iostack.registry import registry
from tests.trainer import cases
from trainer.build import build_on_meta, materialise
from trainer.contracts import Request
from trainer.program import Program, build_program
from trainer.random import stream_generator, stream_seed

BATCH = cases.batch_of_step(0, data_rank=0, data_ranks=1)


class Recurrent(nn.Module):
    """A model as a third party would write it."""

    def __init__(self, vocab_size: int, width: int = 16) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, width)
        self.cell = nn.GRU(width, width, batch_first=True)
        self.head = nn.Linear(width, vocab_size)
        self.head.weight = self.embedding.weight

    def forward(self, tokens_BS: torch.Tensor) -> Any:
        return self.head(self.cell(self.embedding(tokens_BS))[0])


class Unfilled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(3))


def build_with(monkeypatch: pytest.MonkeyPatch, model: Any, **changes: Any) -> Program:
    models = registry().named("iostack_models") | {"other": lambda options, *, vocab_size, seq_len: model(vocab_size)}
    monkeypatch.setattr(registry(), "named", lambda hook: models)
    request = Request(batch_size=cases.ROWS, seq_len=cases.SEQ_LEN, **changes)
    return build_program(
        request, model_name="other", model_options={}, vocab_size=cases.VOCAB_SIZE, device="cpu", seed=0
    )


def test_initial_values_depend_on_seed_and_name_only() -> None:
    whole = cases.Case("whole").build().tensors()
    other_seed = cases.Case("other").build(seed=1).tensors()
    name = "layers.2.feed_forward.down.weight"
    torch.manual_seed(7)
    assert torch.equal(whole[f"model.{name}"], cases.Case("again").build().tensors()[f"model.{name}"])
    assert not torch.equal(whole[f"model.{name}"], other_seed[f"model.{name}"])
    assert not torch.equal(whole[f"model.{name}"], whole["model.layers.1.feed_forward.down.weight"])


def test_the_global_generator_is_left_alone_by_initial_values() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    cases.Case("any").build()
    assert torch.equal(torch.rand(1), expected)


def test_streams_are_pinned() -> None:
    assert stream_seed(0, "init", "layers.0") == 6891154853809039002
    assert stream_seed(0, "step", 1, 0) != stream_seed(0, "step", 10)
    assert torch.rand(1, generator=stream_generator(1, "a")).item() == torch.rand(1, generator=stream_generator(1, "a"))


def test_a_third_partys_model_trains_with_tied_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    program = build_with(monkeypatch, Recurrent, dtype="fp64")
    losses = [program.step(BATCH, learning_rate=0.03).loss for _ in range(20)]
    assert losses[-1] < losses[0] - 0.5
    assert program.flops_per_token == 6 * program.num_parameters
    assert "model.head.weight" in program.tensors()
    assert "optimizer.head.weight.exp_avg" not in program.tensors()


def test_a_module_that_cannot_fill_its_tensors_is_refused_by_name() -> None:
    with torch.device("meta"):
        stage = nn.Sequential(nn.Linear(2, 2), Unfilled())
    with pytest.raises(PluginError, match=r"module '1' \(Unfilled\) owns tensors but has no reset_parameters"):
        materialise(stage, seed=0, device=torch.device("cpu"))


def test_an_unknown_model_is_refused_with_the_nearest() -> None:
    with pytest.raises(SettingsError, match="'decodr'") as caught:
        build_on_meta("decodr", {}, vocab_size=2, seq_len=2)
    assert "'decoder'" in caught.value.hint


def test_a_loss_that_is_not_finite_stops_the_run_and_changes_nothing() -> None:
    program = cases.Case("any").build()
    program.tensors()["model.head.weight"][0, 0] = torch.inf
    before = {name: tensor.clone() for name, tensor in program.tensors().items()}
    with pytest.raises(RunError, match="the loss is nan"):
        program.step(BATCH, learning_rate=0.1)
    assert program.state()["steps"] == 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in program.tensors().items())


def test_a_step_without_valid_tokens_has_no_loss_and_no_gradient() -> None:
    report = cases.Case("any").build().step(BATCH | {"valid": torch.zeros(8, dtype=torch.bool)}, learning_rate=0.1)
    assert (report.loss, report.grad_norm, report.num_valid) == (0.0, 0.0, 0)


def test_evaluation_changes_nothing_and_agrees_with_the_step() -> None:
    program = cases.Case("any").build()
    before = {name: tensor.clone() for name, tensor in program.tensors().items()}
    loss_sum, num_valid = program.evaluate(BATCH)
    assert all(torch.equal(tensor, before[name]) for name, tensor in program.tensors().items())
    report = program.step(BATCH, learning_rate=0.1)
    assert report.num_valid == num_valid
    assert report.loss == pytest.approx(loss_sum / num_valid, rel=1e-12)


def test_generation_repeats_with_its_seed_and_goes_beyond_the_context() -> None:
    program = cases.Case("any").build()
    sampled = program.generate([1, 2], 30, temperature=1.0, seed=5)
    assert len(sampled) == 30
    assert sampled == program.generate([1, 2], 30, temperature=1.0, seed=5)
    assert sampled != program.generate([1, 2], 30, temperature=1.0, seed=6)
    assert program.generate([1], 3, temperature=0.0, seed=1) == program.generate([1], 3, temperature=0.0, seed=2)


def test_tensors_go_into_a_fresh_program_in_place_or_by_value() -> None:
    trained = cases.Case("trained").build()
    trained.step(BATCH, learning_rate=0.1)
    saved = {name: tensor.clone() for name, tensor in trained.tensors().items()}
    by_value, in_place = cases.Case("one").build(seed=1), cases.Case("two").build(seed=2)
    by_value.load_tensors(saved)
    for name, tensor in in_place.tensors().items():
        tensor.copy_(saved[name])
    in_place.load_tensors(in_place.tensors())
    for program in (by_value, in_place):
        program.load_state(json.loads(json.dumps(trained.state())))
        assert program.steps == 1
    reports = [program.step(BATCH, learning_rate=0.1) for program in (trained, by_value, in_place)]
    assert reports[0] == reports[1] == reports[2]
    saved.pop("model.norm.weight")
    with pytest.raises(StateError, match=r"'model\.norm\.weight' is not in the checkpoint"):
        by_value.load_tensors(saved)


def test_bf16_keeps_fp32_weights_and_stays_near_fp32() -> None:
    full, half = cases.Case("full", dtype="fp32").build(), cases.Case("half", dtype="bf16").build()
    assert {tensor.dtype for tensor in half.tensors().values()} == {torch.float32}
    losses = [[program.step(BATCH, learning_rate=1e-3).loss for _ in range(3)] for program in (full, half)]
    assert losses[0] == pytest.approx(losses[1], rel=2e-2)
    assert losses[0] != losses[1]


def test_contracts_and_plugins_import_no_torch(tmp_path: Path) -> None:
    plugins = "iostack_decoder, iostack_ddp, iostack_replicate, iostack_recompute"
    code = f"import sys, trainer.contracts, {plugins}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=tmp_path).returncode == 0
