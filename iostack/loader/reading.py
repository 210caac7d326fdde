"""What all sources of one loader are built with, and how they become its batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from iostack.loader.ahead.in_flight import InFlight
from iostack.loader.ahead.memory import Memory
from iostack.loader.metering.meter import Meter
from iostack.loader.order.planned import LoaderPlan
from iostack.loader.threads import Threads
from iostack.loader.transforming.bad_samples import BadSamples
from iostack.loader.transforming.watch import Watch

if TYPE_CHECKING:
    from iostack.loader.tasks.elsewhere import Elsewhere


@dataclass(frozen=True)
class Reading:
    """What the sources of one loader share.

    ``meter`` takes what they do, ``watch`` which samples they do it with; ``own_lanes`` are those that this rank reads,
    ``epochs`` bounds a finite pass, ``lookahead_bytes`` is what each source may hold before it is needed, ``memory`` what the
    loader may hold in all, ``pinned`` says whether blocks lie in pinned memory, ``threads`` are those that decode, or that
    wait for the worker processes of ``elsewhere``, and ``unit_threads`` those that load units, of all sources together, as
    ``in_flight`` counts what all of them fetch; ``slack_s`` is how much longer work may take there, since a worker that
    hangs is replaced.
    """

    plan: LoaderPlan
    meter: Meter
    own_lanes: Sequence[int]
    bad_samples: BadSamples
    watch: Watch
    epochs: int | None
    lookahead_bytes: int
    memory: Memory
    pinned: bool
    threads: int
    unit_threads: Threads
    in_flight: InFlight
    elsewhere: Elsewhere | None = None
    slack_s: float = 0.0

    @property
    def ends_by_data(self) -> bool:
        """Whether only the data tells when a finite pass ends."""
        return self.epochs is not None and self.plan.sources[0].uses_units
