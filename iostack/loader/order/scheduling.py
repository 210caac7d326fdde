"""From a plan to its schedule: the mix, what limits its sources, and where a finite pass ends."""

from __future__ import annotations

from collections.abc import Sequence

from iostack.errors import PlanError
from iostack.loader.order.planned import LoaderPlan, Source
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


def epochs_of_the_pass(sources: Sequence[Source], epochs: int | None) -> int | None:
    """Return the epochs of a loader of one source, whichever way they are given; a mix has those of its sources.

    Raises:
        PlanError: two that differ, less than one, or epochs of a mix as a whole.
    """
    if len(sources) > 1:
        if epochs is not None:
            raise PlanError(
                "a mix of sources has no epochs of its own",
                hint="give the sources epochs, Source(corpus, epochs=2), or leave them out and count steps",
            )
        return None
    given = sources[0].epochs
    if given is not None and epochs not in (None, given):
        raise PlanError(f"the source has epochs={given}, and the loader {epochs}", hint="give one of them")
    epochs = epochs if given is None else given
    if epochs is not None and epochs < 1:
        raise PlanError(f"epochs must be at least 1, not {epochs}")
    return epochs
