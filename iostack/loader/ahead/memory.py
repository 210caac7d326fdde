"""How much memory a loader may hold: what the user says, or a share of what the machine and its limits leave.

    limit = min(RAM, cgroup, address space) ──1/4, shared by the ranks of the machine──> memory ──1/2──> pinned memory

A loader that has less shortens first what is loaded ahead, then its blocks; never its windows, for they are the order.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from iostack.errors import PlanError
from iostack.sizes import format_bytes, parse_bytes

_SHARE_OF_LIMIT = 4
_BLOCK_BYTES = 4 << 20
"""Small enough to stay in the processor's cache until the consumer reads it, large enough that its making costs nothing."""
_LEAST_LOOKAHEAD_BYTES = 1 << 20
_UNLIMITED = 1 << 60
"""Limits above this mean none: cgroup v1 writes its largest number of pages."""


@dataclass(frozen=True)
class Memory:
    """What one loader may hold, in bytes: ``host`` for what it loads ahead and its blocks, ``pinned`` for copies to CUDA.

    Mapped shards are not counted, which the system takes back when it needs to; nor are the tables of the plan and
    of documents.
    """

    host: int
    pinned: int

    def block_batches(self, batch_bytes: int, *, slots: int, pinned: bool) -> int:
        """Return how many batches a block may hold, where ``slots`` blocks live at once.

        Raises:
            PlanError: not even one.
        """
        allowed, setting = (self.pinned, "pinned_memory") if pinned else (self.host, "memory")
        if slots * batch_bytes > allowed:
            raise PlanError(
                f"a batch takes {format_bytes(batch_bytes)}, more than there is memory for: {slots} must fit into"
                f" {setting}, which is {format_bytes(allowed)}",
                hint=f"raise data.{setting}, in Python {setting}=, or use a smaller batch_size or seq_len",
            )
        return max(1, min(_BLOCK_BYTES, allowed // (2 * slots)) // batch_bytes)

    def lookahead_bytes(self, wanted: int, blocks_bytes: int) -> int:
        """Return how much of the ``wanted`` look-ahead fits beside the blocks."""
        return min(wanted, max(_LEAST_LOOKAHEAD_BYTES, self.host - blocks_bytes))


def memory_of(memory: int | str | None, pinned_memory: int | str | None) -> Memory:
    """Return the sizes that were given; None is a share of the limit of this process."""
    if memory is not None:
        host = parse_bytes(memory)
    else:
        host = memory_limit() // _SHARE_OF_LIMIT // _local_ranks()
    return Memory(host, parse_bytes(pinned_memory) if pinned_memory is not None else host // 2)


def memory_limit(root: Path = Path("/")) -> int:
    """Return the bytes that this process may use: of the machine, its cgroup and its own limit of addresses.

    ``root`` is where /proc and /sys are.
    """
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), *cgroup_limits(root)]
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        limits.append(max(0, soft - _mapped_bytes(root)))
    return min(limits)


def _mapped_bytes(root: Path) -> int:
    """Return the addresses that this process uses: its libraries alone take gigabytes of them."""
    with suppress(OSError, ValueError, IndexError):
        return int((root / "proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def cgroup_limits(root: Path = Path("/")) -> Iterator[int]:
    """Yield the memory limits of this process's control groups and of those around them, versions 1 and 2."""
    with suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, _, rest = line.partition(":")
            controllers, _, group = rest.partition(":")
            if controllers == "":
                yield from _limits_upward(root / "sys/fs/cgroup", group, "memory.max")
            elif "memory" in controllers.split(","):
                yield from _limits_upward(root / "sys/fs/cgroup/memory", group, "memory.limit_in_bytes")


def _limits_upward(mount: Path, group: str, name: str) -> Iterator[int]:
    """Yield the limits of a group and its parents; in a container the mount itself may be the group."""
    place = Path(group.lstrip("/"))
    for folder in (place, *place.parents):
        with suppress(OSError, ValueError):  # "max", or a group that this container does not see
            limit = int((mount / folder / name).read_text())
            if limit < _UNLIMITED:
                yield limit


def _local_ranks() -> int:
    """Return how many ranks torchrun started on this machine."""
    text = os.environ.get("LOCAL_WORLD_SIZE", "1")
    return max(1, int(text)) if text.isdecimal() else 1
