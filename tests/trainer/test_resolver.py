"""The resolver orders what fits and refuses the rest by name, with a hint, before anything is allocated."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

import trainer.program
from iostack.errors import ResolveError, SettingsError
from iostack.registry import registry
from trainer.contracts import AXES, Facts, Parallelism, Phase, Request
from trainer.resolver import resolve

FACTS = Facts("2.13.0", "cpu", num_parameters=1000, layers=("layers.0", "layers.1"), features=frozenset({"split"}))
SHIPPED: list[type[Parallelism]] = [
    kind for kind in registry().listed("iostack_parallelisms") if kind.name in ("ddp", "replicate", "recompute")
]


def parallelism(name: str, phase: Phase = Phase.SHARD, **attributes: Any) -> type[Parallelism]:
    """Make a parallelism that must not be run: everything but ``check`` fails the test."""
    return type(name, (Untouchable,), {"name": name, "phase": phase, **attributes})


class Untouchable(Parallelism):
    name: ClassVar[str] = "untouchable"
    phase: ClassVar[Phase] = Phase.SHARD

    def split(self, model: Any, ctx: Any) -> Any:
        raise AssertionError("the resolver must not build")

    apply = split


PIPELINE = parallelism("pipeline", Phase.SPLIT, axes=("pp",), executor=lambda self, stages, loss, ctx: None)


def request(**changes: Any) -> Request:
    return replace(Request(batch_size=24, seq_len=8), **changes)


def names(wanted: Request, available: list[type[Parallelism]]) -> list[str]:
    return [backend.name for backend in resolve(wanted, FACTS, available).backends]


def refusal(wanted: Request, available: list[type[Parallelism]]) -> ResolveError:
    with pytest.raises(ResolveError) as caught:
        resolve(wanted, FACTS, available)
    assert caught.value.hint
    assert "\n" not in caught.value.message
    return caught.value


def test_data_ranks_get_ddp_unless_replicate_is_named() -> None:
    wanted = request(world_size=2, axes={"dp_replicate": 2})
    assert names(wanted, SHIPPED) == ["ddp"]
    assert names(replace(wanted, use=("replicate",)), SHIPPED) == ["replicate"]
    assert names(request(), SHIPPED) == []


def test_a_pipeline_gets_replicate_and_refuses_ddp() -> None:
    wanted = request(world_size=4, axes={"dp_replicate": 2, "pp": 2})
    available = [*SHIPPED, PIPELINE]
    assert names(wanted, available) == ["pipeline", "replicate"]
    error = refusal(replace(wanted, use=("ddp",)), available)
    assert "ddp" in error.message
    assert "replicate" in error.hint


def test_phases_order_whatever_the_request_says() -> None:
    wanted = request(world_size=2, axes={"dp_replicate": 2}, use=("ddp", "recompute"))
    assert names(wanted, SHIPPED) == ["recompute", "ddp"]


def test_after_and_before_order_within_a_phase() -> None:
    available = [parallelism("a", after=("c",)), parallelism("b", before=("c",)), parallelism("c")]
    assert names(request(use=("a", "b", "c")), available) == ["b", "c", "a"]


@pytest.mark.parametrize(
    "available",
    [
        [parallelism("a", after=("b",)), parallelism("b", after=("a",))],
        [parallelism("a", Phase.SPLIT, after=("b",)), parallelism("b", Phase.SHARD)],
    ],
)
def test_orders_that_contradict_themselves_are_refused(available: list[type[Parallelism]]) -> None:
    error = refusal(request(use=("a", "b")), available)
    assert "a before b" in error.message or "b before a" in error.message


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    error = refusal(request(use=("replicat",)), SHIPPED)
    assert "'replicat'" in error.message
    assert "'replicate'" in error.hint


def test_an_axis_that_nothing_provides_is_refused_by_its_setting() -> None:
    error = refusal(request(world_size=2, axes={"tp": 2}), SHIPPED)
    assert "parallel.tensor = 2" in error.message
    assert "no installed parallelism provides axis tp" in error.message


def test_two_providers_of_one_axis_are_refused() -> None:
    wanted = request(world_size=2, axes={"dp_replicate": 2}, use=("ddp", "replicate"))
    assert "both provide axis dp_replicate" in refusal(wanted, SHIPPED).message


def test_an_axis_with_several_providers_and_no_choice_is_refused() -> None:
    available = [parallelism("one", axes=("tp",)), parallelism("two", axes=("tp",))]
    wanted = request(world_size=2, axes={"tp": 2})
    assert "one, two" in refusal(wanted, available).message
    assert names(replace(wanted, use=("two",)), available) == ["two"]


def test_conflicts_are_refused_whoever_declares_them() -> None:
    available = [parallelism("a", conflicts=("b",)), parallelism("b")]
    assert "a cannot be combined with b" in refusal(request(use=("b", "a")), available).message


def test_two_executors_are_refused() -> None:
    other = parallelism("zigzag", Phase.SPLIT, executor=lambda self, stages, loss, ctx: None)
    wanted = request(world_size=2, axes={"pp": 2}, use=("zigzag",))
    assert "pipeline and zigzag" in refusal(wanted, [PIPELINE, other]).message


def test_axes_that_do_not_fill_the_world_are_refused_with_what_would() -> None:
    error = refusal(request(world_size=4, axes={"dp_replicate": 3}), SHIPPED)
    assert "data 3 = 3, but there are 4 processes" in error.message
    assert "parallel.data = 4" in error.hint
    error = refusal(request(world_size=5, axes={"pp": 2, "tp": 2}), SHIPPED)
    assert "start 4 or 8 processes" in error.hint


def test_an_unknown_axis_and_an_impossible_size_are_refused() -> None:
    assert "'dp_shard'" in refusal(request(axes={"dp_shards": 2}), SHIPPED).hint
    assert "parallel.context = 0" in refusal(request(axes={"cp": 0}), SHIPPED).message
    assert "'fp8'" in refusal(request(dtype="fp8"), SHIPPED).message


def test_options_are_checked_by_name_and_belong_to_what_is_used() -> None:
    with pytest.raises(SettingsError, match="'recompute' has no option 'each'") as caught:
        resolve(request(use=("recompute",), options={"recompute": {"each": 2}}), FACTS, SHIPPED)
    assert "every" in caught.value.hint
    assert "does not use it" in refusal(request(options={"recompute": {"every": 2}}), SHIPPED).message
    assert names(request(options={"ddp": {"bucket_mb": 1.0}}), SHIPPED) == []


def test_the_plan_prints_mesh_batch_and_order() -> None:
    wanted = request(world_size=4, axes={"dp_replicate": 4}, use=("recompute",), microbatch_size=2)
    text = str(resolve(wanted, FACTS, SHIPPED))
    assert "mesh: dp_replicate 4 (world size 4, 4 data ranks)" in text
    assert "6 per data rank in 3 microbatches" in text
    assert text.index("1. recompute") < text.index("2. ddp for dp_replicate")


@given(batch_size=st.integers(0, 100), ranks=st.integers(1, 6), microbatch=st.one_of(st.none(), st.integers(1, 6)))
def test_the_nearest_batch_sizes_of_a_refusal_are_accepted(batch_size: int, ranks: int, microbatch: int | None) -> None:
    wanted = request(batch_size=batch_size, world_size=ranks, axes={"dp_replicate": ranks}, microbatch_size=microbatch)
    try:
        resolve(wanted, FACTS, SHIPPED)
    except ResolveError as error:
        for size in map(int, re.findall(r"\d+", error.hint)):
            resolve(replace(wanted, batch_size=size), FACTS, SHIPPED)


KINDS = [
    parallelism(f"p{index}", phase, axes=axes, after=after, before=before, conflicts=conflicts)
    for index, (phase, axes, after, before, conflicts) in enumerate(
        [
            (Phase.SPLIT, ("pp",), (), (), ()),
            (Phase.TENSOR, ("tp",), (), (), ("p5",)),
            (Phase.SHARD, ("dp_shard", "dp_replicate"), (), ("p6",), ()),
            (Phase.SHARD, ("dp_replicate",), (), (), ()),
            (Phase.COMPILE, (), ("p5",), (), ()),
            (Phase.COMPILE, (), ("p6",), (), ()),
            (Phase.COMPILE, (), ("p4",), (), ()),
        ]
    )
]


@given(
    sizes=st.fixed_dictionaries({axis.name: st.sampled_from([1, 1, 2, 3]) for axis in AXES}),
    slack=st.sampled_from([0, 0, 0, 1]),
    use=st.lists(st.sampled_from([kind.name for kind in KINDS]), max_size=4),
    batch_size=st.sampled_from([36, 72, 7]),
    available=st.permutations(KINDS),
)
def test_every_request_is_resolved_in_order_or_refused(
    sizes: dict[str, int], slack: int, use: list[str], batch_size: int, available: list[type[Parallelism]]
) -> None:
    wanted = request(world_size=math.prod(sizes.values()) + slack, axes=sizes, use=tuple(use), batch_size=batch_size)
    try:
        resolution = resolve(wanted, FACTS, available)
    except ResolveError as error:
        with pytest.raises(ResolveError, match=re.escape(error.message)):
            resolve(wanted, FACTS, list(reversed(available)))
        return
    order = [backend.name for backend in resolution.backends]
    assert slack == 0
    assert set(use) <= set(order)
    assert order == names(wanted, list(reversed(available)))
    phases = [backend.phase for backend in resolution.backends]
    assert phases == sorted(phases)
    for backend in resolution.backends:
        assert not set(backend.conflicts) & set(order)
        assert all(order.index(name) < order.index(backend.name) for name in backend.after if name in order)
        assert all(order.index(backend.name) < order.index(name) for name in backend.before if name in order)
    for axis in AXES:
        providers = [backend for backend in resolution.backends if axis.name in backend.axes]
        assert len(providers) <= 1
        assert providers or sizes[axis.name] == 1


def test_a_refused_program_has_allocated_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def untouched(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("allocated before the request was resolved")

    monkeypatch.setattr(trainer.program, "build_context", untouched)
    monkeypatch.setattr(trainer.program, "materialise", untouched)
    with pytest.raises(ResolveError, match="no installed parallelism provides axis tp"):
        trainer.program.build_program(
            request(world_size=2, axes={"tp": 2}),
            model_name="decoder",
            model_options={"dim": 1 << 14, "heads": 16, "layers": 64},
            vocab_size=1 << 17,
            device="cpu",
            seed=0,
            parallelisms=SHIPPED,
        )
