"""The state of a loader: small, JSON-safe, the same on any number of ranks, refused by the name of what differs.

    {version, fingerprint, plan: {all that decides order}, position, cursors: {source: {lane: [draw, given, time]}}}

``cursors`` stand only for sources whose order needs a look at the data; a rank's state holds those of its own lanes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from iostack.errors import StateError
from iostack.loader.ahead.streams import Cursor

VERSION = 2
"""1 was of an order in which segments stood side by side on the axis."""
State = dict[str, Any]
_MOST = 1 << 48
"""Numbers in a state are below this, so that no product of one with the number of lanes leaves 64 bits."""
_OTHER_RUN = "resume with the corpus and settings of the saved run, or start a new one"
_OTHER_CORPUS = (
    "resume with the corpus of the saved run, or start a new one; iostack index, run since, changes it too: the counts that"
    " it finds are part of it"
)
Cursors = dict[int, dict[int, Cursor]]
"""Source number -> lane -> cursor."""


def make_state(fingerprint: str, plan: Mapping[str, Any], position: int, cursors: Cursors) -> State:
    """Return the state for JSON."""
    return {
        "version": VERSION,
        "fingerprint": fingerprint,
        "plan": dict(plan),
        "position": position,
        "cursors": {
            str(source): {str(lane): list(cursor) for lane, cursor in sorted(lanes.items())}
            for source, lanes in sorted(cursors.items())
        },
    }


def read_state(
    state: Mapping[str, Any], fingerprint: str, plan: Mapping[str, Any], *, may_differ: Collection[str] = ()
) -> tuple[int, Cursors]:
    """Return (position, cursors) of a state that belongs to this corpus and plan, but for the fields that may differ.

    Raises:
        StateError: it does not; the message names the field and both values.
    """
    if not isinstance(state, Mapping):
        raise StateError(f"a loader state is a table, not {type(state).__name__}")
    _same("version", state.get("version"), VERSION)
    _same("fingerprint", state.get("fingerprint"), fingerprint, hint=_OTHER_CORPUS)
    saved = state.get("plan")
    if isinstance(saved, Mapping):
        saved = {name: value for name, value in saved.items() if name not in may_differ}
    _same("plan", saved, {name: value for name, value in plan.items() if name not in may_differ})
    position = state.get("position")
    if type(position) is not int or not 0 <= position < _MOST:
        raise StateError(f"field 'position' of the loader state is {position!r}, not a position")
    try:
        cursors = {
            int(source): {int(lane): _cursor(cursor) for lane, cursor in lanes.items()}
            for source, lanes in state.get("cursors", {}).items()
        }
    except (AttributeError, TypeError, ValueError) as error:
        raise StateError(f"field 'cursors' of the loader state is not a table of cursors: {error}") from error
    return position, cursors


def merge_states(states: Sequence[Mapping[str, Any]]) -> State:
    """Return one state that any number of ranks can load, from the states of all ranks at the same step.

    Raises:
        StateError: they are not of one step of one run, or there are none.
    """
    if not states:
        raise StateError("there are no loader states to merge")
    if not isinstance(states, Sequence) or not all(isinstance(state, Mapping) for state in states):
        raise StateError(f"loader states are a list of tables, not {states!r:.100}")
    first = states[0]
    position, _ = read_state(first, first.get("fingerprint", ""), first.get("plan", {}))
    merged: Cursors = {}
    for state in states:
        _same("position", state.get("position"), position)
        _, cursors = read_state(state, first["fingerprint"], first["plan"])
        for source, lanes in cursors.items():
            known = merged.setdefault(source, {})
            for lane, cursor in lanes.items():
                if lane not in known or known[lane][2] < cursor[2]:
                    known[lane] = cursor
    return make_state(first["fingerprint"], first["plan"], position, merged)


def _cursor(values: Sequence[int]) -> Cursor:
    draw, given, time = values
    if any(type(value) is not int or not 0 <= value < _MOST for value in (draw, given, time)):
        raise ValueError(f"{values!r} is not a cursor")
    return draw, given, time


def _same(field: str, saved: Any, ours: Any, *, hint: str = _OTHER_RUN) -> None:
    if saved == ours and type(saved) is type(ours):
        return
    if isinstance(saved, Mapping) and isinstance(ours, Mapping):
        for name in sorted({*saved, *ours}):
            _same(f"{field}.{name}", saved.get(name), ours.get(name))
    elif isinstance(saved, list) and isinstance(ours, list) and len(saved) == len(ours):
        for index, (left, right) in enumerate(zip(saved, ours)):
            _same(f"{field}[{index}]", left, right)
    elif saved != ours:
        raise StateError(
            f"field {field!r} of the loader state is {saved!r}, but here it is {ours!r}",
            hint=hint,
        )
