"""Join the processes of a run into torch's process group, under watch, and leave it again."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

from iostack.errors import RankLostError
from trainer.supervise.heartbeat import Heartbeat, Verdict, announce
from trainer.supervise.world import World

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

_START_S = 300.0
"""How long ranks may take to start: machines boot containers, and import torch from a shared disk."""
_COLLECTIVE_S = 1800.0


@contextmanager
def process_group(
    world: World, *, device_type: str, silence_s: float, lost: Callable[[Verdict], None], watch: list[Heartbeat]
) -> Iterator[Heartbeat | None]:
    """Be a member of the process group; CPU tensors always travel over gloo, CUDA tensors over NCCL.

    A single process has no group, and yields None. ``lost`` is called from a thread when another rank is gone. The
    heartbeat is put into ``watch`` as soon as it beats: it outlives an error, so that the others learn of it.

    Raises:
        RankLostError: a rank did not start in time; names all that did not.
    """
    if world.store is None or world.size == 1:
        yield None
        return
    import torch
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import PrefixStore

    # torchrun's agent keeps one store for all attempts: without a prefix an attempt reads the addresses of the last.
    attempt = f"attempt{world.attempt}"
    server = _connect(world)
    beats = PrefixStore(f"{attempt}/alive", _connect(world, as_client=True))
    announce(beats, world)
    _wait_for_all(beats, world)
    heartbeat = Heartbeat(beats, world, silence_s=silence_s, lost=lost)
    heartbeat.start()
    watch.append(heartbeat)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device_type == "cuda" else "gloo",
        store=PrefixStore(f"{attempt}/group", server),
        rank=world.rank,
        world_size=world.size,
        timeout=timedelta(seconds=_COLLECTIVE_S),
    )
    yield heartbeat
    # Reached without an error only: after one, the process ends and the others learn it from the verdict.
    dist.all_reduce(torch.zeros(1))  # a barrier over gloo, on any device
    heartbeat.close()
    _leave_together(beats, world)
    dist.destroy_process_group()


def _connect(world: World, *, as_client: bool = False) -> Store:
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    host, port = world.store or ("", 0)
    serves = world.rank == 0 and not world.agent_serves_store and not as_client
    listen_fd = world.launch.listen_fd if serves and world.launch else None
    # A second owner of the descriptor: the store closes its own when it ends.
    store: Store = TCPStore(
        host,
        port,
        is_master=serves,
        wait_for_workers=False,
        timeout=timedelta(seconds=_START_S),
        master_listen_fd=os.dup(listen_fd) if listen_fd is not None else None,
    )
    return store


def _wait_for_all(store: Store, world: World) -> None:
    keys = [f"who/{rank}" for rank in range(world.size)]
    try:
        store.wait(keys, timedelta(seconds=_START_S))
    except Exception as error:
        late = [str(rank) for rank, key in enumerate(keys) if not store.check([key])]
        raise RankLostError(
            f"rank {', '.join(late)} did not start within {_START_S:g} s", hint="see what its machine logged"
        ) from error


def _leave_together(store: Store, world: World) -> None:
    """Let nobody go before all have stopped watching, and the rank that serves the store go last.

    A process that ends looks like one that died to those that still watch, and so does a store that vanishes.
    """
    for stage, waits in (("left", True), ("gone", world.rank == 0 and not world.agent_serves_store)):
        if store.add(stage, 1) == world.size:
            store.set(f"all {stage}", "")
        if waits:
            store.wait([f"all {stage}"], timedelta(seconds=_START_S))
