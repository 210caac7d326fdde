"""What the ranks tell each other during a save or a load: JSON over byte tensors, on a group of their own.

The group is gloo's whatever the training uses, so that a save never meets the collectives of a step on the same group,
and nothing is pickled. Work that may fail runs inside ``run``: it gathers how each rank fared, so that a failure on one
is the same CheckpointError on all and no rank waits for one that has given up.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from iostack.errors import BrokenStepError, CheckpointError, IostackError, redact

T = TypeVar("T")

_DISK_FULL = frozenset({errno.EFBIG, errno.ENOSPC, errno.EDQUOT})


class Exchange:
    """The ranks of ``group`` (all, if None); one rank alone where torch.distributed is not initialised.

    Every method is a collective: all ranks call it, in the same order. A rank that does not come within ``timeout_s``
    is a CheckpointError on the others.
    """

    def __init__(self, group: Any | None, *, timeout_s: float) -> None:
        self.rank, self.world = 0, 1
        self._group: Any = None
        if dist.is_available() and dist.is_initialized():
            ranks = None if group is None else dist.get_process_group_ranks(group)
            self.rank, self.world = dist.get_rank(group), dist.get_world_size(group)
            self._group = dist.new_group(
                ranks,
                timeout=timedelta(seconds=timeout_s),
                backend="gloo",
                use_local_synchronization=ranks is not None,
                group_desc="checkpoint",
            )

    def gather(self, value: object) -> list[Any]:
        """Return every rank's value, by rank; values are what JSON holds."""
        if self.world == 1:
            return [value]
        return [json.loads(data) for data in self._gather_bytes(json.dumps(value).encode())]

    def share(self, data: bytes) -> bytes:
        """Return rank 0's bytes."""
        if self.world == 1:
            return data
        with _peers_answer():
            size = torch.tensor([len(data)], dtype=torch.int64)
            dist.broadcast(size, group=self._group, group_src=0)
            content = _tensor(data) if self.rank == 0 else torch.empty(int(size), dtype=torch.uint8)
            dist.broadcast(content, group=self._group, group_src=0)
            return content.numpy().tobytes()

    def run(self, doing: str, action: Callable[[], T]) -> T:
        """Run ``action`` on every rank and return its result here, or raise what failed on any of them on all.

        BrokenStepError if that is all that failed, else CheckpointError. ``doing`` begins the message.
        """
        error: Exception | None = None
        try:
            result = action()
        except Exception as caught:  # noqa: BLE001 - whatever failed here, the other ranks must learn of it
            error = caught
        outcomes = self.gather(None if error is None else _describe(error))
        failed = [(rank, outcome) for rank, outcome in enumerate(outcomes) if outcome is not None]
        if failed:
            raise self._joint_error(doing, failed) from error
        return result

    def run_on_first(self, doing: str, action: Callable[[], bytes]) -> bytes:
        """Run ``action`` on rank 0 and return its bytes on all ranks, or raise its failure on all."""
        results: list[bytes] = []
        self.run(doing, lambda: results.append(action()) if self.rank == 0 else None)
        return self.share(results[0] if results else b"")

    def close(self) -> None:
        """Leave the group. The process group itself is the caller's."""
        if self._group is not None and dist.is_initialized():
            dist.destroy_process_group(self._group)
        self._group = None

    def _gather_bytes(self, data: bytes) -> list[bytes]:
        with _peers_answer():
            sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world)]
            dist.all_gather(sizes, torch.tensor([len(data)], dtype=torch.int64), group=self._group)
            longest = max(int(size) for size in sizes)
            parts = [torch.empty(longest, dtype=torch.uint8) for _ in range(self.world)]
            dist.all_gather(parts, _tensor(data.ljust(longest)), group=self._group)
        return [part[: int(size)].numpy().tobytes() for part, size in zip(parts, sizes)]

    def _joint_error(self, doing: str, failed: list[tuple[int, dict[str, Any]]]) -> CheckpointError:
        rank, first = failed[0]
        where = f"rank {rank}: " if self.world > 1 else ""
        others = f" ({len(failed)} of {self.world} ranks failed)" if len(failed) > 1 else ""
        kind = BrokenStepError if all(outcome["is_broken"] for _, outcome in failed) else CheckpointError
        return kind(f"{doing}: {where}{first['message']}{others}", hint=first["hint"])


def _describe(error: Exception) -> dict[str, Any]:
    message, hint = f"{type(error).__name__}: {error}", ""
    if isinstance(error, IostackError):
        message, hint = error.message, error.hint
    elif isinstance(error, OSError):
        message = f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}"
        if error.errno in _DISK_FULL:
            hint = "free some space, raise the quota, or keep fewer steps"
        elif isinstance(error, PermissionError):
            hint = "give this user the right to write there, or choose another folder"
    is_broken = isinstance(error, BrokenStepError) or getattr(error, "errno", None) == errno.EIO  # a bad sector
    return {"message": redact(message), "hint": hint, "is_broken": is_broken}


def _tensor(data: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)


class _peers_answer:
    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, RuntimeError):
            raise CheckpointError(
                f"another rank did not answer: {error}", hint="look at the log of the ranks for the one that died"
            ) from error
