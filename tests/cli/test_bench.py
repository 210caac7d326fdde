"""``iostack bench``: figures that add up, and one line for what is wrong."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import corpora
import numpy as np
import pytest

from iostack.cli import main
from iostack.stages import STAGES

FIGURES = {"samples_per_s", "mb_per_s", "wall_s", "cpu_s", "first_batch_s", "peak_rss_bytes"}


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    corpora.write_jsonl(tmp_path / "texts" / "a.jsonl", corpora.texts(200))
    return tmp_path / "texts"


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    corpora.write_tokens(tmp_path / "tokens" / "a", [[np.arange(5000).tolist()]])
    return tmp_path / "tokens"


def _json(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> Any:
    assert main(["bench", *map(str, arguments), "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return json.loads(captured.out)


def test_tokens_are_measured(tokens: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = _json(capsys, tokens, "--seq-len", "64", "--batch-size", "6", "--steps", "50")
    assert (facts["format"], facts["steps"], facts["batch_size"], facts["seq_len"]) == ("tokens", 50, 6, 64)
    assert all(facts[name] > 0 for name in FIGURES)
    assert facts["tokens_per_s"] == pytest.approx(64 * facts["samples_per_s"], rel=1e-3)
    assert facts["samples_per_s"] == pytest.approx(50 * 6 / facts["wall_s"], rel=0.02)
    batch_bytes = 6 * 65 * 8 + 6 + 6 * 8
    assert facts["mb_per_s"] == pytest.approx(50 * batch_bytes / facts["wall_s"] / 1e6, rel=0.02)
    assert 0 <= facts["wait_share"] <= 1


def test_text_is_tokenised_and_measured(texts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = _json(capsys, texts, "--seq-len", "32", "--steps", "20", "--tokenizer", "bytes", "--text-column", "text")
    assert facts["tokens_per_s"] > 0
    assert set(facts["wait_s"]) == {*STAGES} - {"consumer"}
    assert sum(facts["wait_s"].values()) == pytest.approx(facts["wait_share"] * facts["wall_s"], rel=0.01)


def test_whole_samples_have_no_tokens_but_bytes(texts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keep = json.dumps({"name": "keep", "columns": ["text"]})
    facts = _json(capsys, texts, "--steps", "25", "--batch-size", "8", "--transform", keep)
    assert facts["tokens_per_s"] is None
    all_texts = [len(sample["text"]) for sample in corpora.texts(200)]
    found = facts["mb_per_s"] * 1e6 * facts["wall_s"] - 25 * 8 * 9  # valid and sample_ids take 9 bytes a sample
    assert min(all_texts) * 200 < found < max(all_texts) * 200


def test_one_of_several_ranks_takes_its_share(tokens: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = _json(capsys, tokens, "--seq-len", "64", "--batch-size", "8", "--ranks", "4", "--steps", "30")
    assert facts["samples_per_s"] == pytest.approx(30 * 2 / facts["wall_s"], rel=0.02)


def test_seconds_bound_the_measurement(tokens: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = _json(capsys, tokens, "--seq-len", "64", "--seconds", "0.05")
    assert facts["steps"] > 0
    assert facts["wall_s"] >= 0.05


def test_bad_samples_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.jsonl").write_text('{"n": 1}\n{\n{"n": 2}\n')
    assert main(["bench", str(tmp_path), "--steps", "3", "--batch-size", "3", "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["bad_samples"] == 1


def test_the_table_says_what_json_says(tokens: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", str(tokens), "--seq-len", "64", "--steps", "5"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    names = [line[:12].strip() for line in captured.out.splitlines()]
    assert names == [
        "uri", "format", "first batch", "measured", "samples/s", "tokens/s", "MB/s", "waiting", "peak memory",
    ]  # fmt: skip
    assert "5 batches in" in captured.out


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["{}/nowhere"], 1, "there is no such file or folder"),
        (["{}", "--batch-size", "7", "--ranks", "2"], 2, "hint: use a batch size of 6 or 8"),
        (["{}", "--batch-size", "0"], 2, "--batch-size"),
        (["{}", "--seconds", "0"], 2, "--seconds"),
        (["{}", "--seq-len", "32", "--tokenizer", "byte"], 2, "did you mean 'bytes'?"),
        (["{}", "--transform", "keeps"], 2, "did you mean 'keep'?"),
        (["{}", "--transform", "{{x"], 2, "neither a name nor JSON"),
        (["{}", "--seq-len", "100000"], 2, "text shorter than one sequence: seq_len 100000 needs 100001 tokens"),
        (["{}", "--seq-len", "999999999999999"], 2, "more than there is memory"),
        (["{}", "--format", "tokens"], 1, "no tokens shards"),
        (["{}", "--seq-len", "32", "--text-column", "body"], 2, "there is no column 'body'; the sample has n, text"),
    ],
)
def test_what_is_wrong_is_told_in_one_line_and_a_hint(
    texts: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, told: str
) -> None:
    assert main(["bench", *(argument.format(texts) for argument in arguments)]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert told in captured.err
    assert [line.split(":")[0] for line in captured.err.splitlines()] == ["error", "hint"]


def test_on_a_terminal_a_live_line_shows_and_stdout_stays_clean(tokens: Path) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", "import sys; from iostack.cli import main; sys.exit(main())"]
    command += ["bench", str(tokens), "--seq-len", "64", "--seconds", "1", "--json"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=theirs, env={**os.environ, "TERM": "xterm"}
    ) as process:
        os.close(theirs)
        out, shown = process.stdout, b""
        assert out is not None
        try:
            while chunk := os.read(ours, 65536):
                shown += chunk
        except OSError:  # the other end of the terminal is closed
            pass
        assert json.loads(out.read())["steps"] > 0
    os.close(ours)
    assert process.returncode == 0
    assert b"samples/s" in shown


def test_asking_for_help_imports_neither_torch_nor_rich() -> None:
    told = (
        "import sys; from iostack.cli import main; main(['bench', '--help']); print({'torch', 'rich'} & {*sys.modules})"
    )
    out = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True).stdout
    assert "Load batches of URI" in out
    assert out.endswith("set()\n")
