"""One process of a run: join the others, train, and say why it ends."""

from __future__ import annotations

import os
import re
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import NoReturn

from iostack.errors import UsageError
from trainer.run_folder import RunFolder
from trainer.settings import Settings
from trainer.supervise.heartbeat import Heartbeat, Verdict
from trainer.supervise.launch import RESUME_HINT
from trainer.supervise.report import (
    Failure,
    failure_of,
    let_the_first_tell,
    print_failure,
    print_traceback,
    send_failure,
)
from trainer.supervise.world import World

_COLLECTIVE = re.compile(
    r"(?i)\bgloo\b|\bnccl\b|\bprocessgroup|connection closed by peer|application timeout caused pair closure"
)
"""What gloo and NCCL say of themselves, or of a peer that is gone; gloo raises plain RuntimeErrors."""


def run_process(settings: Settings, *, world: World, run_dir: Path, debug: bool = False) -> int:
    """Run this rank to its end and return its exit code; errors are told here, once for all ranks."""
    watch: list[Heartbeat] = []
    try:
        return _run(settings, world, run_dir, watch)
    except Exception as error:
        if world.size == 1:
            raise
        _end(error, world, watch, debug=debug)


def _run(settings: Settings, world: World, run_dir: Path, watch: list[Heartbeat]) -> int:
    from trainer.loop import run_training
    from trainer.observing import serve_metrics
    from trainer.setup import choose_device
    from trainer.supervise.group import process_group

    device = choose_device(settings, world)
    lost = _Lost(world)
    with process_group(
        world, device_type=device.type, silence_s=settings.train.silence_s, lost=lost, watch=watch
    ) as heartbeat:
        lock_fd = world.launch.lock_fd if world.launch else None
        checkpoint_uri = settings.checkpoint.uri or str(run_dir.absolute() / "checkpoints")
        locked = RunFolder(run_dir, lock_fd=lock_fd) if world.rank == 0 else nullcontext()
        # Before the corpus is opened and the model built: a port that is taken is told at once.
        with locked as folder, serve_metrics(settings.metrics, world):
            return run_training(
                settings,
                world=world,
                device=device,
                checkpoint_uri=checkpoint_uri,
                folder=folder,
                heartbeat=heartbeat,
            )


class _Lost:
    """Ends this process because another rank is gone; called from a thread, since the main one may be stuck."""

    def __init__(self, world: World) -> None:
        self._world = world

    def __call__(self, verdict: Verdict) -> None:
        failure = Failure(f"{verdict.message}; this run ends", RESUME_HINT, is_consequence=True)
        if self._world.launch:
            send_failure(self._world.launch.report_fd, failure)
        elif verdict.is_first:
            print_failure(failure)
        sys.stdout.flush()
        os._exit(1)


def _end(error: Exception, world: World, watch: list[Heartbeat], *, debug: bool) -> NoReturn:
    """End this rank, and tell why, unless it fails because another one is gone."""
    failure = failure_of(error)
    if debug:
        print_traceback(error, rank=world.rank)
    if watch and _is_collective(error):
        watch[0].wait_for_verdict()  # ends the process if a rank was lost
    if watch:
        is_first = watch[0].fail(f"rank {world.rank} failed: {failure.message}")
    else:  # not joined yet: what is wrong with the request, all ranks find out
        is_first = world.local_rank == 0 or not isinstance(error, UsageError)
    if world.launch:
        send_failure(world.launch.report_fd, failure)
    elif is_first:
        print_failure(failure)
    elif not watch:
        let_the_first_tell()
    sys.stdout.flush()
    # Leaving in an orderly way would wait for collectives that nobody answers.
    os._exit(failure.exit_code)


def _is_collective(error: BaseException) -> bool:
    """Whether an error may be how a lost peer shows: one of torch.distributed, or of gloo below it."""
    from torch.distributed import DistError

    chain: BaseException | None = error
    while chain is not None:
        if isinstance(chain, DistError) or (type(chain) is RuntimeError and _COLLECTIVE.search(str(chain))):
            return True
        chain = chain.__cause__
    return False
