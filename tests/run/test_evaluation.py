"""Evaluation on a held-out corpus, and the callbacks around a run."""

from __future__ import annotations

import pytest
import runs


@pytest.fixture(scope="session")
def held_out(tmp_path_factory: pytest.TempPathFactory):
    """Three shards: on two ranks their parts of a pass end at different batches."""
    return runs.write_corpus(tmp_path_factory.mktemp("data") / "held_out", shards=3, rows=7)


@pytest.mark.distributed
def test_a_whole_pass_gives_the_same_loss_on_one_rank_and_on_two(run, held_out, tmp_path):
    settings = ("-s", "train.steps=8", "-s", f"evaluation.uri={held_out}", "-s", "evaluation.every=3")
    other = runs.Run(run.corpus, run.settings, tmp_path / "other")
    one, two = run.train(*settings), other.train(*settings, procs=2)
    assert (one.code, two.code) == (0, 0), one.err + two.err

    ours, theirs = (runs.read_lines(each.folder / "evaluation.jsonl") for each in (run, other))

    assert [line["step"] for line in ours] == [3, 6, 8]
    assert [line["tokens"] for line in ours] == [line["tokens"] for line in theirs]
    assert ours[0]["tokens"] > 16 * 8
    losses = [line["evaluation_loss"] for line in ours]
    assert losses == pytest.approx([line["evaluation_loss"] for line in theirs], rel=1e-5)
    assert losses[-1] < losses[0]
    assert "evaluation loss" in one.err


@pytest.mark.distributed
def test_the_first_batches_are_the_same_on_three_ranks_whose_lanes_would_be_others(run, held_out, tmp_path):
    settings = ("-s", "train.steps=1", "-s", f"evaluation.uri={held_out}", "-s", "evaluation.steps=5")
    settings += ("-s", "data.batch_size=12", "-s", "train.learning_rate=1e-9")
    other = runs.Run(run.corpus, run.settings, tmp_path / "other")
    assert (run.train(*settings).code, other.train(*settings, procs=3).code) == (0, 0)

    [ours], [theirs] = (runs.read_lines(each.folder / "evaluation.jsonl") for each in (run, other))

    assert ours["tokens"] == theirs["tokens"]
    assert ours["evaluation_loss"] == pytest.approx(theirs["evaluation_loss"], rel=1e-6)


def test_evaluating_does_not_change_the_training(run, held_out, tmp_path):
    other = runs.Run(run.corpus, run.settings, tmp_path / "other")
    assert run.train("-s", "train.steps=6").code == 0
    assert other.train("-s", "train.steps=6", "-s", f"evaluation.uri={held_out}", "-s", "evaluation.every=2").code == 0

    assert [line["loss"] for line in run.metrics] == [line["loss"] for line in other.metrics]


def test_some_batches_only_and_a_resume_keeps_one_line_per_evaluation(run, held_out):
    settings = ("-s", f"evaluation.uri={held_out}", "-s", "evaluation.every=2", "-s", "evaluation.steps=1")
    for steps in (4, 8):
        ended = run.train(*settings, "-s", f"train.steps={steps}")
        assert ended.code == 0, ended.err

    lines = runs.read_lines(run.folder / "evaluation.jsonl")
    assert [line["step"] for line in lines] == [2, 4, 6, 8]
    assert {line["batches"] for line in lines} == {1}


def test_a_missing_held_out_corpus_is_refused_before_the_first_step(run, tmp_path):
    ended = run.train("-s", f"evaluation.uri={tmp_path / 'nowhere'}")
    assert ended.code == 1
    assert len(ended.errors) == 1
    assert "nowhere" in ended.errors[0]
    assert not run.folder.exists()


def test_callbacks_are_called_around_steps_saves_and_evaluations(run, held_out, plugin, tmp_path):
    journal = tmp_path / "journal"
    settings = ("-s", "train.steps=2", "-s", f"callbacks.journal.path={journal}", "-s", "checkpoint.every=1")
    ended = run.train(*settings, "-s", f"evaluation.uri={held_out}", **plugin)
    assert ended.code == 0, ended.err

    assert journal.read_text().splitlines() == [
        "start 0",
        "step 1",
        "save 1",
        "step 2",
        "evaluation 2",
        "save 2",
        "end 2",
    ]


def test_the_end_is_called_after_an_error_too(run, plugin, tmp_path):
    journal = tmp_path / "journal"
    failing = ("-s", "callbacks.fail.after=1", "-s", "callbacks.fail.ranks=[0]")
    ended = run.train("-s", f"callbacks.journal.path={journal}", *failing, **plugin)

    assert ended.code == 1
    assert "Traceback" not in ended.err
    assert journal.read_text().splitlines()[-1] == "end 1"


@pytest.mark.parametrize(("after", "reason"), [(1, "the callback is broken"), (9, "the end is broken")])
def test_a_callback_that_fails_at_the_end_hides_no_other_error_and_no_other_end(run, plugin, tmp_path, after, reason):
    journal = tmp_path / "journal"
    failing = (
        "-s",
        "callbacks.fail_at_end={}",
        "-s",
        f"callbacks.fail.after={after}",
        "-s",
        "callbacks.fail.ranks=[0]",
    )
    ended = run.train(*failing, "-s", f"callbacks.journal.path={journal}", "-s", "train.steps=2", **plugin)

    assert ended.code == 1
    assert len(ended.errors) == 1
    assert reason in ended.errors[0]
    assert "the end of callback FailAtEnd failed: ValueError: the end is broken" in ended.err
    assert journal.read_text().splitlines()[-1] == f"end {min(after, 2)}"
