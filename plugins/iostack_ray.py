"""Engine "ray": actors on a Ray cluster, or on a Ray that is started here where there is none.

Pieces are idempotent, so Ray starts a lost actor anew and repeats what it was doing. Source, target and tokenizer files
must be reachable by the same names from every node.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from iostack import hookimpl
from iostack.errors import IostackError, MissingExtraError, PluginError

if TYPE_CHECKING:
    from iostack.prepare.contracts import Engine

T = TypeVar("T")
R = TypeVar("R")

_TICK_S = 1.0
_RETRIES = 3


@hookimpl
def iostack_engines() -> Mapping[str, Callable[..., Engine]]:
    return {"ray": RayEngine}


class RayEngine:
    """``jobs`` actors of one core each; by default one per core of the cluster.

    ``RAY_ADDRESS`` names the cluster, as for any program of Ray.
    """

    def __init__(self, *, jobs: int | None = None) -> None:
        try:
            import ray
        except ImportError as error:
            raise MissingExtraError("the engine 'ray' needs Ray", hint='pip install "iostack[ray]"') from error
        self._ray = ray
        self._started = not ray.is_initialized()
        if self._started:
            own: dict[str, Any] = (
                {} if os.environ.get("RAY_ADDRESS") else {"num_cpus": jobs, "include_dashboard": False}
            )
            try:
                ray.init(logging_level=logging.WARNING, log_to_driver=False, **own)
            except (OSError, RuntimeError, ValueError) as error:
                raise PluginError(
                    f"Ray cannot be reached: {error}", hint="check RAY_ADDRESS, and: ray status"
                ) from error
        self._jobs = jobs or max(1, int(_resources(ray).get("CPU", 1)))

    def map(
        self, build_worker: Callable[[], Callable[[T], R]], items: Iterable[T], tick: Callable[[], None]
    ) -> Iterator[R]:
        """Yield the results as they come; see ``Engine``."""
        ray = self._ray
        actor = ray.remote(num_cpus=1, max_restarts=_RETRIES, max_task_retries=_RETRIES)(_Worker)
        waiting = iter(items)
        given: dict[Any, Any] = {}
        for item in islice(waiting, self._jobs):
            worker = actor.remote(build_worker)
            given[worker.run.remote(item)] = worker
        while given:
            ready, _ = ray.wait(list(given), num_returns=1, timeout=_TICK_S)
            for reference in ready:
                worker = given.pop(reference)
                yield self._result(reference)
                for item in islice(waiting, 1):
                    given[worker.run.remote(item)] = worker
            tick()

    def _result(self, reference: Any) -> Any:
        try:
            is_good, result = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            raise PluginError(
                f"a piece was lost on the cluster {_RETRIES} times: {str(error).splitlines()[0]}",
                hint="the same command goes on; look at the nodes with: ray status",
            ) from error
        if not is_good:
            raise result
        return result

    def close(self) -> None:
        """Leave the cluster, which ends the actors; a Ray that was started here ends too."""
        if self._started:
            self._ray.shutdown()


def _resources(ray: Any) -> Mapping[str, float]:
    found: Mapping[str, float] = ray.cluster_resources()
    return found


class _Worker:
    """What an actor holds: one worker, made with its first item."""

    def __init__(self, build_worker: Callable[[], Callable[[Any], Any]]) -> None:
        self._build_worker = build_worker
        self._worker: Callable[[Any], Any] | None = None

    def run(self, item: Any) -> tuple[bool, Any]:
        try:
            self._worker = self._worker or self._build_worker()
            return True, self._worker(item)
        except IostackError as error:  # Ray would wrap it
            return False, error
        except Exception as error:  # noqa: BLE001 - raised again where the result is wanted
            return False, PluginError(f"{type(error).__name__}: {error}")
