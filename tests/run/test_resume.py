"""Killed at any moment, the same command goes on as if nothing had happened."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import runs

STEPS = 60


def _same_order(metrics: list[dict[str, Any]], reference: list[dict[str, Any]]) -> None:
    assert [line["step"] for line in metrics] == list(range(1, STEPS + 1))
    assert [line["position"] for line in metrics] == [8 * step for step in range(STEPS)]
    assert [line["samples_digest"] for line in metrics] == [line["samples_digest"] for line in reference]


@pytest.fixture(scope="session")
def uninterrupted(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, Any]]]:
    """Metrics by number of ranks, made at the first use of each."""

    class Made(dict[int, Any]):
        def __missing__(self, procs: int) -> list[dict[str, Any]]:
            folder = tmp_path_factory.mktemp(f"uninterrupted{procs}")
            (folder / "run.toml").write_text(runs.SETTINGS)
            run = runs.Run(corpus, folder / "run.toml", folder / "run")
            ended = run.train(procs=procs, IOSTACK_CACHE=str(folder / "cache"))
            assert ended.code == 0, ended.err
            self[procs] = run.metrics
            return self[procs]

    return Made()


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("procs", [1, 2, 4])
def test_a_run_killed_at_random_moments_ends_bit_equal_to_one_that_never_stopped(run, uninterrupted, procs):
    dice = random.Random(procs)
    reached = 0
    for victims in ("one", "all"):
        target = reached + dice.randrange(5, 15)
        with run.start(procs=procs) as process:
            # A resumed run first cuts its metrics back; wait for steps that this start has made.
            runs.wait_until(lambda target=target: run.steps >= target or process.has_ended(), f"step {target}")
            assert not process.has_ended(), process.wait().err
            ranks = process.ranks()
            process.kill(*(ranks if victims == "all" else [dice.choice(ranks)]))
            assert process.wait().code != 0
            assert all(runs.is_gone(pid) for pid in ranks)
        reached = run.steps
        assert reached < STEPS

    ended = run.train(procs=procs)

    assert ended.code == 0, ended.err
    assert "resuming after step" in ended.err
    _same_order(run.metrics, uninterrupted[procs])
    assert [line["loss"] for line in run.metrics] == [line["loss"] for line in uninterrupted[procs]]
    assert [line["grad_norm"] for line in run.metrics] == [line["grad_norm"] for line in uninterrupted[procs]]


def test_a_resumed_run_keeps_its_number_of_threads_unless_it_is_set(run):
    first = run.train("-s", "train.steps=2", "-s", "train.threads=2")
    again = run.train("-s", "train.steps=4", "-s", "train.threads=auto")
    last = run.train("-s", "train.steps=6", "-s", "train.threads=1")

    assert "2 threads per rank" in first.err
    assert "2 threads per rank" in again.err
    assert "1 threads per rank" in last.err


@pytest.mark.slow
@pytest.mark.distributed
def test_a_run_goes_on_with_another_number_of_ranks_on_the_same_samples(run, uninterrupted, plugin):
    for procs, last in ((1, 20), (4, 40), (2, STEPS)):
        ended = run.train("-s", f"train.steps={STEPS}", "-s", f"callbacks.stop.after={last}", procs=procs, **plugin)
        assert ended.code in (0, 143), ended.err
        assert run.steps == last

    _same_order(run.metrics, uninterrupted[1])
    losses = [line["loss"] for line in uninterrupted[1]]
    assert [line["loss"] for line in run.metrics] == pytest.approx(losses, rel=1e-4)
