"""Who this process is among the processes of the run."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from iostack.errors import RunError

LAUNCH_VARIABLE = "IOSTACK_LAUNCH"
"""Environment variable in which our launcher hands ``Launch`` to its ranks."""
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Launch:
    """What a rank inherits from our launcher: its process id, and open file descriptors.

    ``report_fd`` takes the reason why the rank ends, ``lock_fd`` holds the lock of the run folder, ``listen_fd`` is the
    bound socket on which rank 0 serves the store.
    """

    parent: int
    report_fd: int
    lock_fd: int
    listen_fd: int


@dataclass(frozen=True)
class World:
    """This process's place, in torchrun's terms. ``store`` is ``(host, port)``, None in a single process.

    ``agent_serves_store``: torchrun's agent does; else rank 0 serves it.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    attempt: int = 0
    store: tuple[str, int] | None = None
    agent_serves_store: bool = False
    launch: Launch | None = None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """Read the variables that torchrun, or our launcher, sets; without them this is a single process.

        Raises:
            RunError: some are set and others missing, or they are no numbers.
        """
        if "RANK" not in environment and "WORLD_SIZE" not in environment:
            return cls()
        try:
            rank, size = int(environment["RANK"]), int(environment["WORLD_SIZE"])
            store = (environment["MASTER_ADDR"], int(environment["MASTER_PORT"]))
            local_rank = int(environment.get("LOCAL_RANK", rank))
            local_size = int(environment.get("LOCAL_WORLD_SIZE", 1))
        except KeyError as error:
            raise RunError(
                f"environment variable {error.args[0]} is missing beside RANK or WORLD_SIZE",
                hint="start with torchrun, or with iostack train --procs N",
            ) from error
        except ValueError as error:
            raise RunError(f"a rank variable of the environment is not a number: {error}") from error
        launch = json.loads(environment[LAUNCH_VARIABLE]) if LAUNCH_VARIABLE in environment else None
        return cls(
            rank=rank,
            size=size,
            local_rank=local_rank,
            local_size=local_size,
            attempt=int(environment.get("TORCHELASTIC_RESTART_COUNT", 0)),
            store=store,
            agent_serves_store=environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
            launch=Launch(**launch) if launch else None,
        )

    @property
    def store_owner(self) -> str:
        """The process that serves the store, for messages."""
        host, port = self.store or ("", 0)
        owner = "torchrun's agent" if self.agent_serves_store else "rank 0"
        return f"{owner}, which serves the store on {host}:{port},"


def adopt_launch(launch: Launch) -> None:
    """Tie this process to our launcher: it is killed when the launcher dies; its own children inherit nothing."""
    for fd in (launch.report_fd, launch.lock_fd, launch.listen_fd):
        if fd >= 0:
            os.set_inheritable(fd, False)
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # The launcher may have died before the line above took effect.
    if os.getppid() != launch.parent:
        os._exit(1)
