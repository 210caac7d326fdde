"""What a run writes and says, and settings that change how it trains."""

from __future__ import annotations

import math
import re
import tomllib

import pytest
import runs


def test_metrics_hold_one_object_per_step_with_all_figures(run):
    ended = run.train("-s", "train.steps=12")
    assert ended.code == 0, ended.err

    assert [line["step"] for line in run.metrics] == list(range(1, 13))
    for line in run.metrics:
        assert 0 < line["loss"] < 8
        assert line["grad_norm"] > 0
        assert line["tokens"] == 8 * 16
        assert line["position"] == 8 * (line["step"] - 1)
        assert 0 <= line["data_wait_s"] <= line["seconds"]
        assert re.fullmatch("[0-9a-f]{16}", line["samples_digest"])
        assert math.isclose(line["tokens_per_s"], line["tokens"] / line["seconds"], rel_tol=1e-2)
    assert len({line["samples_digest"] for line in run.metrics}) == 12
    rates = [line["learning_rate"] for line in run.metrics]
    assert rates[0] < rates[4] < rates[5] == max(rates)
    assert rates[-1] == 0


def test_the_folder_holds_settings_metrics_and_checkpoints(run):
    assert run.train("-s", "train.steps=2").code == 0

    settings = tomllib.loads((run.folder / "settings.toml").read_text())
    assert settings["train"]["steps"] == 2
    assert settings["data"]["uri"] == str(run.corpus)
    assert "storage_options" not in settings["data"]
    names = {path.name for path in run.folder.iterdir()}
    assert names == {".lock", "settings.toml", "metrics.jsonl", "checkpoints"}


def test_the_log_says_step_loss_speed_wait_and_what_is_left(run):
    err = run.train("-s", "train.steps=3").err

    assert re.search(
        r"^step 1/3  loss \d+\.\d{4}  [\d.]+[kM]? tokens/s  data wait \d+\.\d %( \(\w+\))?  ETA \d+s$",
        err,
        re.MULTILINE,
    )
    assert "done: 3 steps" in err
    assert "\x1b" not in err


def test_microbatches_give_the_same_run(run, tmp_path):
    other = runs.Run(run.corpus, run.settings, tmp_path / "other")
    assert run.train("-s", "train.steps=8").code == 0
    assert other.train("-s", "train.steps=8", "-s", "train.microbatch_size=2").code == 0

    assert [line["samples_digest"] for line in run.metrics] == [line["samples_digest"] for line in other.metrics]
    assert [line["loss"] for line in other.metrics] == pytest.approx([line["loss"] for line in run.metrics], rel=1e-4)


def test_bf16_trains_close_to_fp32(run, tmp_path):
    other = runs.Run(run.corpus, run.settings, tmp_path / "other")
    assert run.train("-s", "train.steps=8").code == 0
    assert other.train("-s", "train.steps=8", "-s", "train.dtype=bf16").code == 0

    losses = [line["loss"] for line in run.metrics]
    assert [line["loss"] for line in other.metrics] != losses
    assert [line["loss"] for line in other.metrics] == pytest.approx(losses, rel=0.05)


def test_a_mix_trains_and_resumes(run, tmp_path):
    second = runs.write_corpus(tmp_path / "second", shards=2)
    run.settings.write_text(
        runs.SETTINGS + f'[[data.sources]]\nuri = "{run.corpus}"\nweight = 3\n[[data.sources]]\nuri = "{second}"\n'
    )
    whole = runs.Run(run.corpus, run.settings, tmp_path / "whole")
    whole.corpus = run.corpus = None
    for part, steps in ((run, 5), (run, 10), (whole, 10)):
        ended = part.train("-s", f"train.steps={steps}", "-s", "train.minimum_learning_rate=0.01")
        assert ended.code == 0, ended.err

    assert [line["samples_digest"] for line in run.metrics] == [line["samples_digest"] for line in whole.metrics]


def test_an_interval_of_time_saves_by_the_clock(run):
    ended = run.train("-s", "checkpoint.every=0.05 seconds", "-s", "train.steps=30")
    assert ended.code == 0, ended.err
    assert len(re.findall(r"^step \d+  saved", ended.err, re.MULTILINE)) > 2


def test_never_saves_at_the_end_all_the_same(run):
    ended = run.train("-s", "checkpoint.every=never", "-s", "train.steps=9")
    assert re.findall(r"^step (\d+)  saved", ended.err, re.MULTILINE) == ["9"]


def test_a_sample_stands_once_in_its_file_after_steps_were_made_again(run, tmp_path):
    sampling = ("-s", "callbacks.sample.every=2", "-s", "callbacks.sample.tokens=5")
    assert run.train(*sampling, "-s", "train.steps=8", "-s", "checkpoint.every=3").code == 0
    text = (run.folder / "samples.txt").read_text()
    assert re.findall(r"(?m)^--- step (\d+)$", text) == ["2", "4", "6", "8"]
    [newest] = (run.folder / "checkpoints" / "manifests").glob("8.*")
    newest.unlink()

    ended = run.train(*sampling, "-s", "train.steps=8")

    assert "resuming after step 6" in ended.err
    assert (run.folder / "samples.txt").read_text() == text
