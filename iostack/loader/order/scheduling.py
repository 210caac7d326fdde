"""From a plan to its schedule: the mix, what limits its sources, and where a finite pass ends."""

from __future__ import annotations

from iostack.loader.order.planning import LoaderPlan
from iostack.loader.order.schedule import Schedule
from iostack.plan.curriculum import Curriculum, Phase
from iostack.plan.mixing import Mix
from iostack.plan.topology import Topology


def make_schedule(plan: LoaderPlan, topology: Topology, epochs: int | None) -> Schedule:
    """Return the schedule of one rank; ``epochs`` are those of a single source."""
    if len(plan.sources) == 1:
        source = plan.sources[0]
        is_known = epochs is not None and not source.uses_units
        return Schedule(topology, plan.lanes, None, int(source.counts.sum()) * epochs if epochs and is_known else None)
    limits = [None if source.epochs is None else source.epochs * int(source.counts.sum()) for source in plan.sources]
    if not plan.phases and limits == [None] * len(limits):
        return Schedule(topology, plan.lanes, Mix(plan.weights, plan.lanes))
    phases = plan.phases if plan.phases and plan.phases[0].start == 0 else (Phase(0, plan.weights), *plan.phases)
    mix = Curriculum(phases, plan.lanes, limits)
    return Schedule(topology, plan.lanes, mix, mix.end)
