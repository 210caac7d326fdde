"""Engine "processes": spawned processes of this machine. A process that dies ends the conversion, which can be resumed."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any, TypeVar

from iostack import hookimpl
from iostack.corpus.deadline import in_threads
from iostack.errors import IostackError, PluginError

if TYPE_CHECKING:
    from iostack.prepare.contracts import Engine

T = TypeVar("T")
R = TypeVar("R")

_TICK_S = 1.0
_END_WITHIN_S = 5.0


@hookimpl
def iostack_engines() -> Mapping[str, Callable[..., Engine]]:
    return {"processes": Processes}


class Processes:
    """``jobs`` processes; by default one per core that this process may use. One job runs in this process itself."""

    def __init__(self, *, jobs: int | None = None) -> None:
        self._jobs = jobs or len(os.sched_getaffinity(0))
        self._running: dict[Connection, Any] = {}

    def map(
        self, build_worker: Callable[[], Callable[[T], R]], items: Iterable[T], tick: Callable[[], None]
    ) -> Iterator[R]:
        """Yield the results as they come; see ``Engine``."""
        if self._jobs == 1:
            # In a thread, so that the caller goes on ticking, and Ctrl-C need not wait for a piece.
            yield from (result for _, result in in_threads(build_worker(), list(items), threads=1, tick=tick))
            return
        waiting = iter(items)
        given: dict[Connection, T] = {}
        for item in itertools.islice(waiting, self._jobs):
            self._give(self._start(build_worker), item, given)
        while given:
            for ready in wait(list(given), timeout=_TICK_S):
                assert isinstance(ready, Connection)
                yield self._result(ready, given.pop(ready))
                for item in itertools.islice(waiting, 1):
                    self._give(ready, item, given)
            tick()

    def _start(self, build_worker: Callable[[], Any]) -> Connection:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs, build_worker), name="iostack-prepare", daemon=True)
        process.start()
        theirs.close()  # so that its death ends the pipe
        self._running[ours] = process
        return ours

    def _give(self, connection: Connection, item: T, given: dict[Connection, T]) -> None:
        given[connection] = item
        try:
            connection.send(item)
        except OSError:  # it died: told when its end of the pipe is read
            return

    def _result(self, connection: Connection, item: object) -> Any:
        try:
            is_good, result = connection.recv()
        except (EOFError, OSError) as error:
            process = self._running[connection]
            process.join(_END_WITHIN_S)
            raise PluginError(
                f"a process that worked on {_name(item)} ended with {_told(process.exitcode)}",
                hint="the same command goes on; if memory ran out, use fewer --jobs",
            ) from error
        if not is_good:
            raise result
        return result

    def close(self) -> None:
        """Kill the processes; what they were making is made again by the next run."""
        for connection, process in self._running.items():
            connection.close()
            process.kill()
        for process in self._running.values():
            process.join(_END_WITHIN_S)
        self._running.clear()


def _name(item: object) -> str:
    number = getattr(item, "number", None)
    return "an item" if number is None else f"piece {number:,}"


def _told(exit_code: int | None) -> str:
    if exit_code is not None and exit_code < 0:
        return f"signal {signal.Signals(-exit_code).name}"
    return f"exit code {exit_code}"


def _work(connection: Connection, build_worker: Callable[[], Callable[[Any], Any]]) -> None:
    """Run in a process of the engine: answer each item until the parent closes the pipe or dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: the parent decides
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the processes are the parallelism
    threading.Thread(target=_end_with_parent, name="iostack-parent", daemon=True).start()
    worker: Callable[[Any], Any] | None = None
    while True:
        try:
            item = connection.recv()
        except (EOFError, OSError):
            return
        try:
            worker = worker or build_worker()
            answer: tuple[bool, Any] = (True, worker(item))
        except BaseException as error:  # noqa: BLE001 - raised again where the result is wanted
            answer = (False, _portable(error))
        try:
            connection.send(answer)
        except OSError:
            return


def _portable(error: BaseException) -> BaseException:
    """Return the error if it can be sent, else one that tells the same."""
    if isinstance(error, IostackError):
        return error
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001 - whatever a foreign exception raises
        return PluginError(f"{type(error).__name__}: {error}")
    return error


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
