"""Which errors of a rank may be how the loss of another one shows: only for those does it wait for the verdict."""

from __future__ import annotations

import pytest
from torch.distributed import DistBackendError, DistNetworkError

from iostack.errors import CheckpointError
from trainer.process import _is_collective

GLOO = (
    "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:537] Read error [127.0.0.1]:1458: Connection reset by peer"
)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(GLOO),
        RuntimeError("Application timeout caused pair closure"),
        RuntimeError("NCCL communicator was aborted on rank 1"),
        DistBackendError("anything"),
        DistNetworkError("The client socket has timed out"),
    ],
)
def test_errors_of_torch_distributed_may_be_a_lost_rank(error):
    assert _is_collective(error)
    outer = CheckpointError("another rank did not answer")
    outer.__cause__ = error
    assert _is_collective(outer)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("The model's rank is too low: expected a tensor of rank 3"),
        RuntimeError("the tracker's server refused the connection to its socket"),
        NotImplementedError("no store for collective works of nccl"),
        ValueError(GLOO),
        CheckpointError("rank 1: no space left on the store"),
    ],
)
def test_errors_of_callbacks_and_models_are_told_at_once(error):
    assert not _is_collective(error)
