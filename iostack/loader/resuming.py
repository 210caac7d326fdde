"""What a state must hold for a rank to go on from it."""

from __future__ import annotations

import numpy as np

from iostack.errors import StateError
from iostack.loader.order.planned import LoaderPlan
from iostack.loader.order.schedule import Schedule
from iostack.loader.state import Cursors
from iostack.plan.topology import next_in_lane, own_lanes


def refuse_missing_cursors(plan: LoaderPlan, schedule: Schedule, position: int, cursors: Cursors) -> None:
    """Check that ``cursors`` fit ``position`` for every lane of this rank.

    Raises:
        StateError: one lacks outputs that other ranks gave, or is ahead: the states of all ranks were not merged.
    """
    for source in plan.sources:
        if not source.uses_units:
            continue
        for lane in own_lanes(schedule.topology, plan.lanes):
            coming = np.asarray([next_in_lane(position, lane, plan.lanes)], np.int64)
            given = int(schedule.source_positions(coming, source.number)[0]) // plan.lanes
            saved = cursors.get(source.number, {}).get(lane, (0, 0, 0))
            if not given >= saved[2] >= schedule.least_given(source.number, lane, position):
                raise StateError(
                    f"field 'cursors' of the loader state has lane {lane} at output {saved[2]}, and position {position}"
                    f" needs {given}",
                    hint="join the states of all ranks with iostack.merge_states before loading them",
                )
