"""Tasks of a loader that worker processes do, with the results and the reports that threads would give."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from iostack.loader.metering.meter import Meter
from iostack.loader.order.planned import LoaderPlan
from iostack.loader.tasks.batch_bytes import batch_bytes
from iostack.loader.tasks.task import BatchTask, Task
from iostack.loader.tasks.travel import Done, Setup, pack_setup
from iostack.loader.threads import patience_s
from iostack.loader.transforming.bad_samples import BadSamples
from iostack.loader.transforming.slow_samples import SlowSamples
from iostack.loader.workers.pool import Pool
from iostack.stages import Tally, waiting_for

_BEGIN = "iostack.loader.in_worker:open_desk"
_TASK_S = 0.1
"""Of work in one task: handing over a batch costs its two sides 0.5 ms each."""
_MOST_TOGETHER = 16
_MOST_HANGS = 16
"""A batch, or a unit, in which more samples hang than this is not waited for any longer."""


class Elsewhere:
    """The worker processes of one loader. Thread-safe, but for ``start`` and ``stop``.

    Raises:
        SettingsError: a transform or tokenizer cannot go to another process.
    """

    def __init__(
        self,
        plan: LoaderPlan,
        workers: int,
        *,
        bad_samples: BadSamples,
        slow_samples: SlowSamples,
        meter: Meter,
        transform_timeout_s: float,
    ) -> None:
        self._plan = plan
        self._bad_samples = bad_samples
        self._slow_samples = slow_samples
        self._meter = meter
        self._timeout_s = transform_timeout_s
        self.pool = Pool(
            workers,
            begin=_BEGIN,
            setup=pack_setup(Setup(plan, bad_samples.budget)),
            name=lambda place: f"{plan.shard_name(place[0], place[1])} row {place[2]}",
            timeout_s=transform_timeout_s,
        )
        self.slack_s = _MOST_HANGS * transform_timeout_s
        self._batch_s = math.inf
        self._batch_bytes = 0

    @property
    def num_threads(self) -> int:
        """How many threads keep all workers busy."""
        return self.pool.num_seats

    def together(self, most_bytes: int) -> int:
        """Return how many batches make a task: 0.1 s of work, by the last ones; their results fit into ``most_bytes``."""
        fitting = most_bytes // max(1, self._batch_bytes * 2 * self.num_threads)
        return max(1, min(int(_TASK_S / self._batch_s), fitting, _MOST_TOGETHER))

    def start(self) -> None:
        """Take tasks from now on."""
        self.pool.start()

    def stop(self) -> None:
        """Kill the workers; tasks under way raise."""
        self.pool.stop()

    def do(self, task: Task) -> Any:
        """Return the result of a task: the columns of a batch, or a unit of text.

        Raises:
            IostackError: what the task raised, or that it kills every worker. SubstitutionError: too many bad samples.
        """
        there = Tally("decode")
        with waiting_for(there, lambda: str(task)):
            done: Done = self.pool.do(task, patience_s=max(patience_s(self._shard_bytes(task)), self._timeout_s))
            there.take(done.tally)
        self._meter.add(there)
        for place, seconds in done.slow:
            self._slow_samples.add(place, seconds)
        for call, arguments in done.bad:
            getattr(self._bad_samples, call)(*arguments)
        if isinstance(task, BatchTask):
            self._batch_s = max(sum(there.busy_s.values()) / task.num_batches, 1e-6)
            self._batch_bytes = batch_bytes(done.result[0])
        return done.result

    def _shard_bytes(self, task: Task) -> int:
        shards: Mapping[int, set[int]]
        if isinstance(task, BatchTask):
            shards = {part.number: set(part.located.shards.tolist()) for _, part in task.parts}
        else:
            shards = {task.number: {task.unit.shard}}
        return sum(
            int(self._plan.sources[number].corpus.manifest.bytes[shard])
            for number, wanted in shards.items()
            for shard in wanted
        )
