"""The schedule is a function of the step; weights decay and embeddings do not; clipping equals torch's."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tests.trainer import cases
from trainer.optimizer import build_adamw, fill_state, learning_rate


def test_the_rate_climbs_to_the_peak_and_falls_by_a_cosine() -> None:
    rates = [learning_rate(step, peak=1.0, warmup_steps=4, total_steps=13, minimum=0.1) for step in range(15)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[8] == pytest.approx(0.55)
    assert rates[12:] == pytest.approx([0.1, 0.1, 0.1])


@given(
    peak=st.floats(1e-6, 1.0),
    share=st.floats(0.0, 1.0),
    warmup_steps=st.integers(0, 50),
    total_steps=st.integers(1, 200),
)
def test_the_rate_stays_between_zero_and_the_peak(
    peak: float, share: float, warmup_steps: int, total_steps: int
) -> None:
    minimum = share * peak
    rates = [
        learning_rate(step, peak=peak, warmup_steps=warmup_steps, total_steps=total_steps, minimum=minimum)
        for step in range(total_steps + 2)
    ]
    assert all(0 < rate <= peak * (1 + 1e-12) or minimum == 0 for rate in rates)
    climbing, falling = rates[: warmup_steps + 1], rates[warmup_steps:]
    assert climbing == sorted(climbing)
    assert falling == sorted(falling, reverse=True)
    assert all(rate >= minimum * (1 - 1e-12) for rate in falling)


def test_norms_biases_and_embeddings_do_not_decay() -> None:
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4), nn.RMSNorm(4))
    decayed, plain = build_adamw([model], weight_decay=0.5, betas=(0.9, 0.95)).param_groups
    assert [id(parameter) for parameter in decayed["params"]] == [id(model[1].weight)]
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.5, 0.0)
    assert len(plain["params"]) == 3


def test_state_filled_in_advance_is_what_adamw_would_have_made() -> None:
    results = []
    for in_advance in (False, True):
        torch.manual_seed(0)
        model = nn.Linear(3, 2)
        optimizer = build_adamw([model], weight_decay=0.1, betas=(0.9, 0.95))
        if in_advance:
            fill_state(optimizer)
        for group in optimizer.param_groups:
            group["lr"] = 0.1
        model(torch.ones(1, 3)).sum().backward()
        optimizer.step()
        results.append((model.weight.detach(), optimizer.state_dict()["state"]))
    assert torch.equal(results[0][0], results[1][0])
    for index, state in results[0][1].items():
        assert {key: value.tolist() for key, value in state.items()} == {
            key: value.tolist() for key, value in results[1][1][index].items()
        }


@pytest.mark.parametrize("limit", [1e-3, 1e6])
def test_clipping_equals_torchs(limit: float) -> None:
    free, clipped = cases.Case("free").build(), cases.Case("clipped", clip=limit).build()
    batch = cases.batch_of_step(0, data_rank=0, data_ranks=1)
    reports = [program.step(batch, learning_rate=0.0) for program in (free, clipped)]
    parameters = free._parts.gradients.parameters
    norm = torch.nn.utils.clip_grad_norm_(parameters.values(), limit)
    assert reports[0].grad_norm == reports[1].grad_norm == pytest.approx(norm.item(), rel=1e-12)
    for name, gradient in cases.gradients_of(clipped).items():
        torch.testing.assert_close(gradient, parameters[name].grad, rtol=1e-5, atol=0)
