"""The checker that plugin authors use finds what is wrong, and says where."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

import iostack
from iostack.loader.state import State
from iostack.testing import check_resume_at_every_step

from .pipelines import Corpora, make


def _check(small: Corpora, kind: type[iostack.Loader]) -> None:
    check_resume_at_every_step(
        lambda rank, ranks: kind(small["texts"], batch_size=12, seq_len=16, lanes=4, rank=rank, ranks=ranks)
    )


class ForgetsTheUnits(iostack.Loader):
    def state_dict(self) -> State:
        return super().state_dict() | {"cursors": {}, "position": 0}


class LooksAtTheRank(iostack.Loader):
    def __iter__(self) -> Iterator[Any]:
        for batch in super().__iter__():
            yield batch | {"tokens": batch["tokens"] + len(batch["tokens"])}


class ForgetsOneToken(iostack.Loader):
    resumed = False

    def load_state_dict(self, state: Any) -> None:
        super().load_state_dict(state)
        self.resumed = bool(state["position"])

    def __iter__(self) -> Iterator[Any]:
        for batch in super().__iter__():
            if self.resumed:
                batch["tokens"] = torch.roll(batch["tokens"], 1, dims=1)
            yield batch


class GivesNothing(iostack.Loader):
    def __iter__(self) -> Iterator[Any]:
        return iter(())


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        (ForgetsTheUnits, "saved by 1 ranks after 1 steps and loaded by 1, .* differ in step 1"),
        (LooksAtTheRank, "after 0 steps and loaded by 2, .* differ in step 0, sample 0, column 'tokens'"),
        (ForgetsOneToken, "saved by 1 ranks after 1 steps .* column 'tokens'"),
        (GivesNothing, "nothing was checked"),
    ],
)
def test_a_loader_that_does_not_resume_exactly_is_found_out(
    small: Corpora, kind: type[iostack.Loader], told: str
) -> None:
    with pytest.raises(AssertionError, match=told):
        _check(small, kind)


def test_a_loader_of_a_plugin_that_keeps_its_promises_passes(small: Corpora) -> None:
    _check(small, iostack.Loader)
    check_resume_at_every_step(lambda rank, ranks: make(small, "tokens", rank, ranks, batch_size=24, epochs=1))
