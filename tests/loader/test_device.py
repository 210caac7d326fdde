"""Batches on a device."""

from __future__ import annotations

from itertools import islice

import pytest
import torch

from iostack.errors import UsageError

from .pipelines import Corpora, make

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: torch finds none")
PIPELINES = ["tokens", "texts", "rows transformed", "mix of three"]


@pytest.mark.parametrize("device", ["cudda", "cuda:99"])
def test_a_device_that_is_not_there_is_refused_at_once(small: Corpora, device: str) -> None:
    with pytest.raises(UsageError, match=device):
        make(small, "tokens", device=device)


def test_other_devices_get_a_plain_copy(small: Corpora) -> None:
    with make(small, "tokens", device="meta") as loader:
        batch = next(iter(loader))
        assert batch["tokens"].device.type == "meta"
        assert batch["tokens"].shape == (12, 17)


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("pipeline", PIPELINES)
def test_batches_on_the_device_equal_those_on_the_host(small: Corpora, pipeline: str) -> None:
    # Kept to the end and compared then: a slot that is reused too early, or memory that is, would show.
    with make(small, pipeline) as host, make(small, pipeline, device="cuda") as loader:
        kept = list(islice(loader, 50))
        for batch, expected in zip(kept, islice(host, 50), strict=True):
            assert batch.keys() == expected.keys()
            for name, column in expected.items():
                if isinstance(column, torch.Tensor):
                    assert batch[name].is_cuda
                    assert torch.equal(batch[name].cpu(), column)
                else:
                    assert batch[name] == column


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("pipeline", PIPELINES)
def test_copies_ahead_do_not_show_in_the_state(small: Corpora, pipeline: str) -> None:
    with make(small, pipeline) as host, make(small, pipeline, device="cuda") as loader:
        for _ in zip(islice(loader, 7), islice(host, 7), strict=True):
            assert loader.state_dict() == host.state_dict()


@pytest.mark.gpu
@needs_cuda
def test_a_consumer_that_is_slow_on_its_own_stream_sees_every_batch_unchanged(small: Corpora) -> None:
    sums, busy = [], torch.ones(2048, 2048, device="cuda")
    with make(small, "tokens", device="cuda") as loader, make(small, "tokens") as host:
        for batch in islice(loader, 30):
            for _ in range(20):
                busy = busy @ busy * 1e-4
            sums.append(batch["tokens"].sum())
            del batch
        assert [int(total) for total in sums] == [int(batch["tokens"].sum()) for batch in islice(host, 30)]


@pytest.mark.gpu
@needs_cuda
def test_a_finite_pass_gives_its_last_batches_too(small: Corpora) -> None:
    host = [batch["sample_ids"].tolist() for batch in make(small, "texts", epochs=1)]
    device = [batch["sample_ids"].tolist() for batch in make(small, "texts", epochs=1, device="cuda")]
    assert device == host
