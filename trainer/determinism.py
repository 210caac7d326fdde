"""The same numbers from the same inputs: kernels that do not depend on timing, and equal thread counts on all ranks."""

from __future__ import annotations

import os

import torch
import torch.distributed as dist


def make_deterministic() -> None:
    """Choose deterministic kernels for this process, and the smallest number of threads that any rank has.

    Sums on the CPU depend on the number of threads: torchrun sets one, a plain start takes all cores. Operations without
    a deterministic kernel only warn.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if dist.is_initialized() and dist.get_world_size() > 1:
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        threads = torch.tensor(torch.get_num_threads(), device=device)
        dist.all_reduce(threads, op=dist.ReduceOp.MIN)
        torch.set_num_threads(int(threads))
