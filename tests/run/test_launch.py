"""Several local ranks: signals, deaths, silence, and what is left of them."""

from __future__ import annotations

import signal
import time

import pytest
import runs

pytestmark = pytest.mark.distributed

LONG = ("-s", "train.steps=5000")


def _train_until(process: runs.Process, run: runs.Run, step: int) -> list[int]:
    runs.wait_until(lambda: run.steps >= step or process.has_ended(), f"step {step}")
    assert not process.has_ended(), process.wait().err
    return process.ranks()


@pytest.mark.parametrize("victim", [0, 1])
def test_a_dead_rank_is_named_in_one_line_and_the_others_end(run, victim):
    with run.start(*LONG, procs=2) as process:
        ranks = _train_until(process, run, 3)
        process.kill(ranks[victim])
        killed = time.monotonic()
        ended = process.wait()

    assert time.monotonic() - killed < 30
    assert ended.code == 1
    assert len(ended.errors) == 1
    assert f"rank {victim} (process {ranks[victim]}) was killed by SIGKILL" in ended.errors[0]
    assert all(runs.is_gone(pid) for pid in ranks)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_silent_rank_is_named_and_the_others_end(run, victim):
    with run.start(*LONG, "-s", "train.silence_s=4.0", procs=2) as process:
        ranks = _train_until(process, run, 3)
        process.kill(ranks[victim], number=signal.SIGSTOP)
        stopped = time.monotonic()
        ended = process.wait()

    assert time.monotonic() - stopped < 30
    assert ended.code == 1
    assert len(ended.errors) == 1
    assert f"rank {victim}" in ended.errors[0]
    assert "fell silent" in ended.errors[0]
    assert all(runs.is_gone(pid) for pid in ranks)


def test_no_rank_outlives_a_killed_launcher_and_the_folder_is_free_again(run):
    with run.start(*LONG, procs=2) as process:
        ranks = _train_until(process, run, 8)
        process.kill(process.pid)
        process.wait()
        # The kernel ends the ranks in its own time: the next start waits for them, and is not refused.
        ended = run.train("-s", "train.steps=10", procs=2)
        assert all(runs.is_gone(pid) for pid in ranks)

    assert ended.code == 0, ended.err
    assert [line["step"] for line in run.metrics][:1] == [1]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("procs", [1, 2])
def test_a_signal_saves_the_step_and_ends_the_run(run, procs, number, code):
    with run.start(*LONG, "-s", "checkpoint.every=never", procs=procs) as process:
        _train_until(process, run, 3)
        process.kill(process.pid, number=number)
        ended = process.wait()

    assert ended.code == code, ended.err
    assert ended.errors == []
    assert f"stopped after step {run.steps} of 5000, which is saved" in ended.err
    resumed = run.train("-s", f"train.steps={run.steps + 1}", procs=procs)
    assert resumed.code == 0, resumed.err
    assert f"resuming after step {run.steps - 1}" in resumed.err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_while_the_ranks_start_ends_them_without_a_word(run, number, code):
    with run.start(*LONG, procs=2) as process:
        runs.wait_until(lambda: len(process.ranks()) == 2 or process.has_ended(), "two ranks")
        process.kill(process.pid, number=number)
        ended = process.wait()

    assert ended.code == code, ended.err
    assert "error" not in ended.err
    assert not run.folder.exists()


def test_an_error_on_one_rank_names_it_and_an_error_on_all_is_told_once(run, plugin):
    one = run.train("-s", "callbacks.fail.after=2", "-s", "callbacks.fail.ranks=[1]", procs=2, **plugin)
    everybody = run.train("-s", "callbacks.fail.after=2", "-s", "callbacks.fail.ranks=[0, 1]", procs=2, **plugin)

    assert (one.code, one.errors) == (1, ["error: rank 1: ValueError: the callback is broken"])
    assert (everybody.code, everybody.errors) == (1, ["error: ValueError: the callback is broken"])
    assert "Traceback" not in one.err + everybody.err


def test_debug_shows_where_a_rank_failed(run, plugin):
    ended = run.train("--debug", "-s", "callbacks.fail.after=2", "-s", "callbacks.fail.ranks=[1]", procs=2, **plugin)

    assert "rank 1:\nTraceback" in ended.err
    assert "run_plugin.py" in ended.err


def test_a_second_run_on_the_same_folder_is_refused(run):
    with run.start(*LONG, procs=2) as process:
        _train_until(process, run, 1)
        refused = run.train()
        assert not process.has_ended()

    assert refused.code == 1
    assert len(refused.errors) == 1
    assert f"is in use by process {process.pid}" in refused.errors[0]


def test_ranks_agree_on_metrics_that_one_process_gives_too(run, tmp_path):
    one = run.train("-s", "train.steps=5")
    other = runs.Run(run.corpus, run.settings, tmp_path / "other")
    two = other.train("-s", "train.steps=5", procs=2)

    assert (one.code, two.code) == (0, 0), one.err + two.err
    for key in ("samples_digest", "position", "tokens", "learning_rate"):
        assert [line[key] for line in run.metrics] == [line[key] for line in other.metrics]
    assert [line["loss"] for line in run.metrics] == pytest.approx([line["loss"] for line in other.metrics], rel=1e-5)


def test_bad_samples_of_every_rank_are_told_with_the_rank(run, tmp_path):
    run.corpus = runs.write_corpus(tmp_path / "corpus")
    for path in run.corpus.iterdir():
        rows = path.read_text().splitlines()
        path.write_text("\n".join("{broken" if number % 4 == 1 else row for number, row in enumerate(rows)) + "\n")

    ended = run.train("-s", "train.steps=10", procs=2)

    assert ended.code == 0, ended.err
    for rank in (0, 1):
        assert f"\nrank {rank}: bad sample " in ended.err
    assert ended.err.count("done: 10 steps") == 1
