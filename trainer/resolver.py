"""From a request to the ordered parallelisms that serve it, or a refusal that says why.

    sizes ─> product = world size ─> batch divides ─> choose ─> conflicts ─> order ─> check

A pure function of the request, the facts and what is installed: it allocates nothing and decides alike on every rank, so
a refusal never leaves one rank waiting for the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from itertools import combinations

from iostack.errors import ResolveError
from iostack.registry import registry
from iostack.suggest import closest
from trainer.contracts import AXES, Facts, Parallelism, Request, build_backend
from trainer.sizes import check_sizes

PREFERRED = {"dp_replicate": ("ddp", "replicate")}
"""What provides an axis when the user names nothing: the first of these that accepts the request."""


@dataclass(frozen=True)
class Resolution:
    """The parallelisms of a run in the order in which they are applied. ``str`` prints the plan."""

    request: Request
    facts: Facts
    backends: tuple[Parallelism, ...]

    def __str__(self) -> str:
        request = self.request
        mesh = " x ".join(f"{axis.name} {request.size(axis.name)}" for axis in AXES if request.size(axis.name) > 1)
        rows = request.batch_size // request.data_ranks
        batch = f"{request.batch_size} sequences of {request.seq_len}, {rows} per data rank"
        lines = [
            f"mesh: {mesh or 'one process'} (world size {request.world_size}, {request.data_ranks} data ranks)",
            f"batch: {batch} in {request.num_microbatches} microbatches, {request.dtype}",
            f"model: {self.facts.num_parameters:,} parameters, {len(self.facts.layers)} layers",
        ]
        for index, backend in enumerate(self.backends, start=1):
            provides = f" for {', '.join(backend.axes)}" if backend.axes else ""
            options = "".join(f", {key} = {value}" for key, value in request.options.get(backend.name, {}).items())
            lines.append(f"{index}. {backend.name}{provides} ({backend.phase.name.lower()}{options})")
        return "\n".join(lines)


def resolve(request: Request, facts: Facts, available: Sequence[type[Parallelism]]) -> Resolution:
    """Choose, check and order the parallelisms of a request.

    ``available`` are those installed; of two with one name the first wins.

    Raises:
        ResolveError: the request is illegal; the message says what, the hint what would be legal.
        SettingsError: an option of a parallelism is unknown.
    """
    check_sizes(request)
    by_name: dict[str, type[Parallelism]] = {}
    for kind in available:
        by_name.setdefault(kind.name, kind)
    chosen = [_named(name, by_name) for name in dict.fromkeys(request.use)]
    for axis in reversed(AXES):
        if request.size(axis.name) > 1 and not any(axis.name in kind.axes for kind in chosen):
            chosen.append(_provider(axis.name, axis.setting, request, facts, by_name))
    for name in request.options:
        kind = _named(name, by_name)
        waits_for_size = kind.axes and all(request.size(axis) == 1 for axis in kind.axes)
        if kind not in chosen and not waits_for_size:
            raise ResolveError(
                f"there are options for parallelism {name!r}, but the request does not use it",
                hint=f"add it to parallel.use, or remove [parallel.{name}]",
            )
    _refuse_conflicts(chosen)
    backends = tuple(_build(kind, request) for kind in _ordered(chosen))
    for backend in backends:
        backend.check(request, facts)
    return Resolution(request=request, facts=facts, backends=backends)


def _build(kind: type[Parallelism], request: Request) -> Parallelism:
    return build_backend(kind, request.options.get(kind.name, {}))


def _named(name: str, by_name: dict[str, type[Parallelism]]) -> type[Parallelism]:
    if name in by_name:
        return by_name[name]
    broken = registry().blame_broken()
    raise ResolveError(f"no installed parallelism is named {name!r}{broken}", hint=closest(name, by_name))


def _provider(
    axis: str, setting: str, request: Request, facts: Facts, by_name: dict[str, type[Parallelism]]
) -> type[Parallelism]:
    """Return the parallelism for an axis that nothing in ``use`` provides."""
    candidates = {name: kind for name, kind in by_name.items() if axis in kind.axes}
    asked = f"parallel.{setting} = {request.size(axis)}"
    if not candidates:
        raise ResolveError(
            f"{asked}: no installed parallelism provides axis {axis}{registry().blame_broken()}",
            hint=f"set parallel.{setting} = 1, or install a plugin that provides it (see: iostack plugins)",
        )
    preferred = [candidates[name] for name in PREFERRED.get(axis, ()) if name in candidates]
    if not preferred and len(candidates) > 1:
        raise ResolveError(
            f"{asked}: several parallelisms provide axis {axis}: {', '.join(sorted(candidates))}",
            hint='choose one, for instance parallel.use = ["' + min(candidates) + '"]',
        )
    options = preferred or list(candidates.values())
    refusal: ResolveError | None = None
    for kind in options:
        try:
            _build(kind, request).check(request, facts)
        except ResolveError as error:
            refusal = refusal or error
        else:
            return kind
    assert refusal is not None
    raise refusal


def _refuse_conflicts(chosen: Sequence[type[Parallelism]]) -> None:
    for one, other in combinations(sorted(chosen, key=lambda kind: kind.name), 2):
        if shared := [axis for axis in one.axes if axis in other.axes]:
            raise ResolveError(
                f"{one.name} and {other.name} both provide axis {shared[0]}",
                hint="leave one of them out of parallel.use",
            )
        if other.name in one.conflicts or one.name in other.conflicts:
            raise ResolveError(
                f"{one.name} cannot be combined with {other.name}", hint="leave one of them out of parallel.use"
            )
    executors = sorted(kind.name for kind in chosen if kind.executor is not Parallelism.executor)
    if len(executors) > 1:
        raise ResolveError(
            f"{' and '.join(executors)} both want to run the microbatches; at most one can",
            hint="leave one of them out of parallel.use",
        )


def _ordered(chosen: Sequence[type[Parallelism]]) -> list[type[Parallelism]]:
    """Order by phase, then ``after`` and ``before``, then name; later phases may not be asked to come first."""
    by_name = {kind.name: kind for kind in chosen}
    comes_after: dict[str, set[str]] = {name: set() for name in by_name}
    for kind in chosen:
        comes_after[kind.name] |= {name for name in kind.after if name in by_name}
        comes_after[kind.name] |= {name for name, other in by_name.items() if other.phase < kind.phase}
        for name in kind.before:
            if name in by_name:
                comes_after[name].add(kind.name)
    sorter = TopologicalSorter(comes_after)
    try:
        sorter.prepare()
    except CycleError as error:
        raise ResolveError(
            f"the order of these parallelisms contradicts itself: {' before '.join(error.args[1])}",
            hint="their phases, after and before cannot all hold; leave one of them out of parallel.use",
        ) from None
    order: list[str] = []
    while sorter.is_active():
        ready = sorted(sorter.get_ready())
        order += ready
        sorter.done(*ready)
    return [by_name[name] for name in order]
