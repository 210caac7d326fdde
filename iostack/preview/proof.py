"""Proves that topologies give the same samples: each rank of each is planned on its own, and their steps are compared."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from iostack.errors import PlanError
from iostack.loader.order.planned import LoaderPlan
from iostack.plan.topology import Topology
from iostack.preview.samples import PlannedSample, Preview, all_ranks


@dataclass(frozen=True)
class Proof:
    """What was compared: ``samples`` of ``steps`` steps, for each number of ``ranks``."""

    ranks: tuple[int, ...]
    steps: int
    samples: int
    distinct: int


def prove(plan: LoaderPlan, batch_size: int, ranks: Sequence[int], steps: range, *, epochs: int | None = None) -> Proof:
    """Compare the steps of all numbers of ranks: same samples at the same positions, each on exactly one rank.

    Raises:
        PlanError: they differ; names the step, the ranks and a sample. Or the ranks do not divide the batch.
    """
    samples, seen = 0, set[int]()
    with ExitStack() as stack:
        topologies = {
            number: [
                stack.enter_context(Preview(plan, Topology(batch_size, rank, number), epochs=epochs))
                for rank in range(number)
            ]
            for number in ranks
        }
        for step in steps:
            found = {number: all_ranks(previews, step) for number, previews in topologies.items()}
            first, *others = found
            for other in (first, *others):
                _refuse_shared(step, other, found[other])
                _refuse_difference(step, (first, found[first]), (other, found[other]))
            samples += len(found[first])
            seen.update(sample.sample_id for sample in found[first])
    return Proof(tuple(ranks), len(steps), samples, len(seen))


def _refuse_shared(step: int, ranks: int, samples: Sequence[PlannedSample]) -> None:
    position, times = Counter(sample.position for sample in samples).most_common(1)[0] if samples else (0, 1)
    if times > 1:
        raise PlanError(f"step {step} on {ranks} ranks: {times} ranks take position {position}")


def _refuse_difference(
    step: int, one: tuple[int, Sequence[PlannedSample]], other: tuple[int, Sequence[PlannedSample]]
) -> None:
    left, right = ({sample.position: sample.sample_id for sample in samples} for _, samples in (one, other))
    differing = sorted(position for position in {**left, **right} if left.get(position) != right.get(position))
    if differing:
        at = differing[0]
        raise PlanError(
            f"step {step}, position {at}: {one[0]} ranks give sample {left.get(at)}, and {other[0]} give {right.get(at)}"
        )
