"""Start N ranks on this machine, watch them, and end them all when one dies.

    start ─> watch ─┬─ all ended with 0 ─────────────────────────> done
                    ├─ a signal came ─> forwarded ─> all ended ──> stopped
                    └─ a rank failed ─> grace (their reports) ─> the others are killed ─> one line

Each rank holds one end of a pipe: what it writes there is why it ends, and end of file is its death. A rank is the
leader of its own session, so that killing it ends what it started, and it is killed by the kernel when the launcher
dies. Nothing here imports torch.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field

from iostack.errors import RankLostError, RunError
from trainer.supervise.report import Failure
from trainer.supervise.signals import exit_code_of
from trainer.supervise.world import LAUNCH_VARIABLE, Launch

_GRACE_S = 3.0
"""How long the other ranks may take to tell why they end, after the first one did."""
_LOOPBACK = "lo" if sys.platform == "linux" else "lo0"
_SHOW_CURSOR = "\x1b[?25h"
_STOPPED = tuple(exit_code_of(number) for number in (signal.SIGINT, signal.SIGTERM))
RESUME_HINT = "the same command again resumes from the last checkpoint"


@dataclass
class _Rank:
    number: int
    process: subprocess.Popen[bytes]
    reports: int
    received: bytes = b""

    def failure(self) -> Failure | None:
        """What the rank itself said before it ended."""
        line, newline, _ = self.received.partition(b"\n")
        return Failure.from_json(line) if newline else None


@dataclass
class _Watch:
    """What is known of the ranks so far."""

    ranks: list[_Rank]
    alive: dict[int, _Rank]
    first_failure: float = 0.0
    stop_signal: int = 0
    """The signal that the launcher got, and passed on."""
    stopped: int = 0
    """The exit code of ranks that ended after a last save, as a signal asked them to."""
    failed: list[_Rank] = field(default_factory=list)


def launch(arguments: Sequence[str], *, procs: int, lock_fd: int) -> int:
    """Run ``python -m trainer ARGUMENTS`` as ``procs`` ranks and return the exit code: 0, or 130 or 143 when stopped.

    The ranks inherit ``lock_fd``. SIGINT and SIGTERM are passed on as SIGTERM, which ends a rank in silence while it still
    starts; later the ranks save and end. A second signal kills them.

    Raises:
        RankLostError: a rank was killed, or ended without a word; names it.
        RunError: a rank failed; carries its message and exit code.
    """
    wake_reader, wake_writer = os.pipe()
    os.set_blocking(wake_writer, False)
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    wakeup_before = signal.set_wakeup_fd(wake_writer)
    ranks: list[_Rank] = []
    try:
        ranks += _start(arguments, procs=procs, lock_fd=lock_fd)
        watch = _Watch(ranks, {rank.number: rank for rank in ranks})
        _watch(watch, wake_reader)
    finally:
        for rank in ranks:
            _kill(rank)
            os.close(rank.reports)
        signal.set_wakeup_fd(wakeup_before)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(wake_reader)
        os.close(wake_writer)
        if sys.stderr.isatty():  # a live bar that was killed has left the cursor hidden
            sys.stderr.write(_SHOW_CURSOR)
    own_failures = [rank for rank in watch.failed if (said := rank.failure()) and not said.is_consequence]
    if own_failures or (watch.failed and not watch.stop_signal):
        raise _explain(watch)
    return exit_code_of(watch.stop_signal) if watch.stop_signal else watch.stopped


def _start(arguments: Sequence[str], *, procs: int, lock_fd: int) -> list[_Rank]:
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        port = listener.getsockname()[1]
        ranks: list[_Rank] = []
        for number in range(procs):
            reader, writer = os.pipe()
            listen_fd = listener.fileno() if number == 0 else -1
            told = Launch(parent=os.getpid(), report_fd=writer, lock_fd=lock_fd, listen_fd=listen_fd)
            environment = {
                "GLOO_SOCKET_IFNAME": _LOOPBACK,
                **{name: value for name, value in os.environ.items() if not name.startswith("TORCHELASTIC_")},
                "RANK": str(number),
                "WORLD_SIZE": str(procs),
                "LOCAL_RANK": str(number),
                "LOCAL_WORLD_SIZE": str(procs),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                LAUNCH_VARIABLE: json.dumps(asdict(told)),
            }
            process = subprocess.Popen(
                [sys.executable, "-m", "trainer", *arguments],
                env=environment,
                stdin=subprocess.DEVNULL,
                pass_fds=[fd for fd in (writer, lock_fd, listen_fd) if fd >= 0],
                start_new_session=True,
            )
            os.close(writer)
            ranks.append(_Rank(number, process, reader))
    return ranks


def _watch(watch: _Watch, wake_fd: int) -> None:
    """Return when no rank is left, or when the time to report after a failure is over."""
    with selectors.DefaultSelector() as selector:
        selector.register(wake_fd, selectors.EVENT_READ, None)
        for rank in watch.ranks:
            selector.register(rank.reports, selectors.EVENT_READ, rank)
        while watch.alive:
            left = watch.first_failure + _GRACE_S - time.monotonic() if watch.first_failure else None
            if left is not None and left <= 0:
                return
            for key, _ in selector.select(left):
                if key.data is None:
                    _pass_on(watch, os.read(wake_fd, 64))
                elif _ended(key.data):
                    selector.unregister(key.fd)
                    _note_end(watch, key.data)


def _ended(rank: _Rank) -> bool:
    data = os.read(rank.reports, 1 << 16)
    rank.received += data
    return not data


def _note_end(watch: _Watch, rank: _Rank) -> None:
    del watch.alive[rank.number]
    # The pipe closes a moment before the process is gone.
    code = rank.process.wait()
    if code in _STOPPED and rank.failure() is None:  # all ranks agreed to stop, whoever asked them
        watch.stopped = code
        return
    if code and not (watch.stop_signal and code == -signal.SIGTERM):
        watch.failed.append(rank)
    # A rank that died of the signal itself, before it could handle it, takes no part in the others' last save.
    if code:
        watch.first_failure = watch.first_failure or time.monotonic()


def _pass_on(watch: _Watch, numbers: bytes) -> None:
    for number in numbers:
        if number not in (signal.SIGINT, signal.SIGTERM):
            continue
        for rank in watch.alive.values():
            if watch.stop_signal:
                _kill(rank)
            else:
                with suppress(ProcessLookupError):
                    rank.process.terminate()
        watch.stop_signal = watch.stop_signal or number


def _kill(rank: _Rank) -> None:
    """End a rank and all that it started, and wait until it is gone."""
    if rank.process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(rank.process.pid, signal.SIGKILL)
        rank.process.wait()


def _explain(watch: _Watch) -> RunError:
    """Return the one error that says why the run ended: a death first, then what the ranks said themselves."""
    for rank in watch.failed:
        if rank.failure() is None and rank.process.returncode < 0:
            return RankLostError(
                f"rank {rank.number} (process {rank.process.pid}) was killed by {_signal_name(-rank.process.returncode)};"
                " the other ranks were ended",
                hint=f"{RESUME_HINT}; if nobody killed it, the kernel's log tells whether memory ran out",
            )
    said = [(rank, failure) for rank in watch.failed if (failure := rank.failure()) is not None]
    said.sort(key=lambda item: item[1].is_consequence)
    if not said:
        rank = watch.failed[0]
        return RankLostError(
            f"rank {rank.number} (process {rank.process.pid}) ended with exit code {rank.process.returncode}"
            " without a message; the other ranks were ended",
            hint=RESUME_HINT,
        )
    rank, failure = said[0]
    is_shared = len(said) == len(watch.ranks) and len({item.message for _, item in said}) == 1
    message = failure.message if is_shared or failure.is_consequence else f"rank {rank.number}: {failure.message}"
    error = RunError(message, hint=failure.hint)
    error.exit_code = failure.exit_code
    return error


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
