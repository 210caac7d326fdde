"""The same run under torchrun: same results, a lost rank named, a restart of torchrun itself."""

from __future__ import annotations

import signal
import time

import pytest
import runs

pytestmark = [pytest.mark.distributed, pytest.mark.slow]


def test_torchrun_and_our_launcher_give_bit_equal_runs(run, tmp_path):
    ours = run.train("-s", "train.steps=10", procs=2)
    other = runs.Run(run.corpus, run.settings, tmp_path / "torchrun")
    theirs = other.train("-s", "train.steps=10", procs=2, torchrun=True)

    assert (ours.code, theirs.code) == (0, 0), ours.err + theirs.err
    for key in ("loss", "grad_norm", "samples_digest"):
        assert [line[key] for line in run.metrics] == [line[key] for line in other.metrics]


@pytest.mark.parametrize(("number", "what"), [(signal.SIGKILL, "died"), (signal.SIGSTOP, "fell silent")])
def test_the_survivors_under_torchrun_name_the_lost_rank_and_end(run, number, what):
    settings = ("-s", "train.steps=5000", "-s", "train.silence_s=4.0")
    with run.start(*settings, procs=2, torchrun=True) as process:
        runs.wait_until(lambda: run.steps >= 3 or process.has_ended(), "step 3")
        assert not process.has_ended(), process.wait().err
        ranks = process.ranks()
        lost_at = time.monotonic()
        process.kill(ranks[1], number=number)
        runs.wait_until(lambda: runs.is_gone(ranks[0]), "the end of the survivor", timeout_s=30)
        if number == signal.SIGSTOP:
            process.kill(ranks[1], number=signal.SIGCONT)
        ended = process.wait()

    assert time.monotonic() - lost_at < 40
    assert ended.code != 0
    assert [line for line in ended.errors if "rank 1" in line and what in line], ended.err


def test_torchrun_restarts_the_ranks_and_they_resume(run, plugin):
    """Its store still holds the addresses of the first attempt: the second must not read them."""
    arguments = ("-s", "train.steps=20", "-s", "callbacks.fail.after=9", "-s", "callbacks.fail.ranks=[1]")
    restarts = {"PET_MAX_RESTARTS": "1", "PET_MONITOR_INTERVAL": "0.1"}
    ended = run.train(*arguments, "-s", "callbacks.fail.once=true", procs=2, torchrun=True, **plugin, **restarts)

    assert ended.code == 0, ended.err
    assert "resuming after step 7" in ended.err
    assert [line["step"] for line in run.metrics] == list(range(1, 21))


def test_bad_settings_are_told_once_per_machine(run):
    ended = run.train("-s", "train.stepz=3", procs=2, torchrun=True)

    assert ended.code != 0
    assert len(ended.errors) == 1
    assert "did you mean 'train.steps'?" in ended.errors[0]
