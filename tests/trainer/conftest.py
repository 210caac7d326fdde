"""Tests of the trainer's core run on one thread: their tensors are tiny, and other tests want the cores."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
