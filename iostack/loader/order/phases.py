"""Phases of a mix and epochs of its sources, as a user gives them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from iostack.corpus.corpus import Corpus
from iostack.errors import PlanError
from iostack.plan.curriculum import Phase
from iostack.plan.mixing import integer_weights

PhaseSpec = Mapping[str, Any] | tuple[int, Sequence[float]]
"""A table {after_samples = ..., weights = [...]}, or these two as a pair; one weight for each source, zeros allowed."""


def read_phases(specs: Sequence[PhaseSpec], *, num_sources: int) -> tuple[Phase, ...]:
    """Return the phases with integer weights, in order.

    Raises:
        PlanError: one is no phase, or its weights do not fit the sources.
    """
    if specs and num_sources < 2:
        raise PlanError("phases change the weights of a mix, and there is one source", hint="leave them out")
    phases: list[Phase] = []
    for number, spec in enumerate(specs):
        if isinstance(spec, Mapping):
            if set(spec) != {"after_samples", "weights"}:
                raise PlanError(
                    f"phase {number} has {', '.join(sorted(map(str, spec))) or 'nothing'}",
                    hint="a phase has after_samples and weights",
                )
            start, weights = spec["after_samples"], spec["weights"]
        elif isinstance(spec, Sequence) and len(spec) == 2:
            start, weights = spec
        else:
            raise PlanError(f"phase {number} is {spec!r}", hint="a phase has after_samples and weights")
        if type(start) is not int or not 0 <= start < 1 << 48:
            raise PlanError(
                f"phase {number} begins after {start!r} samples", hint="after_samples is a number from 0 on"
            )
        if phases and start <= phases[-1].start:
            raise PlanError(
                f"phase {number} begins after {start} samples, and the one before it after {phases[-1].start}",
                hint="list the phases in the order in which they come",
            )
        phases.append(Phase(start, _whole_weights(number, list(weights), num_sources)))
    return tuple(phases)


def refuse_epochs_by_data(corpus: Corpus, epochs: int, *, by_data: bool, kind: str) -> None:
    """Refuse epochs of a source in a mix that cannot be planned.

    Raises:
        PlanError: they are no number from 1 on, or only the data can tell when they are over.
    """
    if type(epochs) is not int or epochs < 1:
        raise PlanError(f"{corpus.uri}: epochs must be at least 1, not {epochs!r}")
    if not by_data:
        return
    if kind == "documents":
        told, hint = "how many sequences its documents fit into", 'use packing="split", or leave out its epochs'
    elif kind == "text":
        told, hint = "how many sequences text gives", "tokenise the corpus beforehand, or leave out its epochs"
    elif corpus.manifest.samples is None:
        told, hint = "how many samples it holds, for they were not counted", f"run: iostack index {corpus.uri}"
    else:
        told, hint = "how many samples its filters leave", "leave out its epochs, or filter the corpus beforehand"
    raise PlanError(f"{corpus.uri}: a mix cannot end its epochs: only the data tells {told}", hint=hint)


def _whole_weights(number: int, weights: list[float], num_sources: int) -> tuple[int, ...]:
    if len(weights) != num_sources:
        raise PlanError(
            f"phase {number} has {len(weights)} weights for {num_sources} sources",
            hint="give one weight for each source, 0 for those that the phase leaves out",
        )
    drawn = [source for source, weight in enumerate(weights) if weight != 0]
    if not drawn:
        raise PlanError(f"phase {number} gives no source a weight", hint="give at least one source a weight above 0")
    whole = dict(zip(drawn, integer_weights([weights[source] for source in drawn], names=drawn), strict=True))
    return tuple(whole.get(source, 0) for source in range(num_sources))
