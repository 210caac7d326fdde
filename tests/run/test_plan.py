"""``iostack plan`` of a run: the samples that it was trained on, and going on without those of a leap of the loss."""

from __future__ import annotations

import json
from pathlib import Path

import corpora
import numpy as np
import pytest
import runs

from iostack.cli import main
from trainer.metrics import DIGEST_BITS

SETTINGS = """
[data]
seq_len = 16
batch_size = 4
vocab_size = 256
[[data.sources]]
uri = "{folder}/a"
weight = 2
[[data.sources]]
uri = "{folder}/b"
epochs = 1
[[data.phases]]
after_samples = 8
weights = [1, 2]
[model]
dim = 16
layers = 1
[train]
steps = {steps}
[checkpoint]
every = 2
"""


def _plan(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> list[dict[str, int]]:
    capsys.readouterr()
    assert main(["plan", *map(str, arguments), "--json"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def _train(folder: Path, *arguments: str) -> runs.Ended:
    return runs.Run(None, folder / "run.toml", folder / "run").train(*arguments)


def _digest(samples: list[dict[str, int]]) -> str:
    return f"{sum(sample['sample_id'] for sample in samples) % (1 << DIGEST_BITS):0{DIGEST_BITS // 4}x}"


def test_the_plan_of_a_run_is_what_it_was_trained_on_and_it_goes_on_without_a_spike(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    random = np.random.default_rng(0)
    for name in "ab":
        corpora.write_tokens(tmp_path / name / "0", [[random.integers(0, 250, 400).tolist()]])
    (tmp_path / "run.toml").write_text(SETTINGS.format(folder=tmp_path, steps=4))
    assert _train(tmp_path).code == 0
    planned = _plan(capsys, "-c", tmp_path / "run", "--steps", "1:4")
    for line in runs.read_lines(tmp_path / "run" / "metrics.jsonl"):
        of_step = [sample for sample in planned if sample["step"] == line["step"]]
        assert _digest(of_step) == line["samples_digest"]
    assert planned == _plan(capsys, "-c", tmp_path / "run.toml", "--steps", "1:4")

    skip = tmp_path / "skip.json"
    spike = _plan(capsys, "-c", tmp_path / "run", "--spike", "6", "--write-skip", skip)
    assert _train(tmp_path, "-s", "train.steps=7", "-s", f"data.skip={skip}").code == 0
    after = _plan(capsys, "-c", tmp_path / "run", "--steps", "5:7")
    lines = runs.read_lines(tmp_path / "run" / "metrics.jsonl")
    for line in lines[4:]:
        assert _digest([sample for sample in after if sample["step"] == line["step"]]) == line["samples_digest"]
    assert not {each["sample_id"] for each in spike} & {each["sample_id"] for each in after}


def test_more_steps_than_the_sources_have_are_refused_before_the_run(
    tmp_path: Path,
) -> None:
    for name in "ab":
        corpora.write_tokens(tmp_path / name / "0", [[list(range(160))]])
    text = SETTINGS.format(folder=tmp_path, steps=50).replace("weight = 2", "epochs = 3")
    (tmp_path / "run.toml").write_text(text)
    ended = _train(tmp_path)
    assert ended.code == 2
    # 36 sequences are 9 steps; those of 8 lanes end apart, so that 8 places more are padding.
    assert ended.errors == ["error: train.steps = 50, but the sources are used up after 11 steps"]
