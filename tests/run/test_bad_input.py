"""What a user gets wrong about training: one line, exit code 1 or 2, no traceback, nothing left behind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import runs


def _refused(ended: runs.Ended, code: int, *words: str) -> None:
    assert ended.code == code, ended.err
    assert len(ended.errors) == 1, ended.err
    assert "Traceback" not in ended.err
    for word in words:
        assert word in ended.err


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    """The folder of a run of two steps, made once."""
    folder = tmp_path_factory.mktemp("two_steps")
    (folder / "run.toml").write_text(runs.SETTINGS)
    ended = runs.Run(corpus, folder / "run.toml", folder / "run").train("-s", "train.steps=2")
    assert ended.code == 0, ended.err
    return folder / "run"


@pytest.fixture
def finished(run: runs.Run, two_steps: Path) -> runs.Run:
    """A run that made two steps."""
    shutil.copytree(two_steps, run.folder)
    return run


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("train.stepz=3", ["unknown setting 'train.stepz'", "did you mean 'train.steps'?"]),
        ("train.steps=many", ["train.steps = 'many'", "(from -s train.steps)", "must be a valid integer"]),
        ("model.dimm=3", ["dimm", "dim"]),
        ("model.name=decodr", ["decodr", "did you mean 'decoder'?"]),
        ("data.batch_size=7", ["data.batch_size = 7", "6 or 8"]),
        ("parallel.use=['dpp']", ["dpp", "did you mean 'ddp'?"]),
        ("parallel.data=3", ["data 3", "2 processes"]),
        ("callbacks.evaluatoin.uri=x", ["evaluatoin", "did you mean 'evaluation'?"]),
        ("data.tokenizer=byte", ["byte", "did you mean 'bytes'?"]),
        ("data.window=a lot", ["a lot"]),
        ("train.device=cuda", ["train.device = 'cuda'", "CUDA"]),
    ],
)
@pytest.mark.distributed
def test_a_wrong_setting_is_refused_on_two_ranks_in_one_line(run, assignment, words):
    ended = run.train("-s", assignment, procs=2)

    _refused(ended, 2, *words)
    assert not run.folder.exists()


def test_a_missing_corpus_is_refused(run, tmp_path):
    run.corpus = tmp_path / "nowhere"
    _refused(run.train(), 1, "nowhere")
    assert not run.folder.exists()


def test_no_corpus_at_all_is_refused(run):
    with runs.Process([*runs.IOSTACK, "--run-dir", str(run.folder)], {}) as process:
        _refused(process.wait(), 2, "no corpus", "give a URI")
    assert not run.folder.exists()


def test_an_empty_folder_is_refused(run, tmp_path):
    run.corpus = tmp_path / "empty"
    run.corpus.mkdir()
    _refused(run.train(), 1, "empty")
    assert not run.folder.exists()


def test_a_corpus_too_short_for_one_sequence_is_refused(run, tmp_path):
    run.corpus = tmp_path / "short"
    run.corpus.mkdir()
    (run.corpus / "a.jsonl").write_text(json.dumps({"text": "hi"}) + "\n")
    ended = run.train("-s", "data.seq_len=512")
    assert ended.code in (1, 2), ended.err
    assert len(ended.errors) == 1
    assert "Traceback" not in ended.err


def test_a_missing_settings_file_is_refused(run, tmp_path):
    run.settings = tmp_path / "no.toml"
    _refused(run.train(), 2, "no.toml", "cannot be read")


def test_a_settings_file_that_is_no_toml_is_refused(run):
    run.settings.write_text("[data\n")
    _refused(run.train(), 2, "run.toml", "not valid TOML")


def test_a_run_folder_that_is_a_file_is_refused(run):
    run.folder.write_text("")
    _refused(run.train(), 1, "cannot be used", "--run-dir")


def test_tokens_without_a_vocabulary_size_are_refused(run, tmp_path):
    import corpora

    run.corpus = tmp_path / "tokens"
    corpora.write_tokens(run.corpus / "a", [[list(range(100))] for _ in range(20)])
    _refused(run.train(), 2, "data.vocab_size", "-s data.vocab_size=50304")
    assert not run.folder.exists()
    ended = run.train("-s", "data.vocab_size=128", "-s", "train.steps=2")
    assert ended.code == 0, ended.err


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("model.dim=64", ["model.dim is 32", "64 now"]),
        ("data.seq_len=32", ["data.seq_len is 16", "32 now"]),
        ("data.seed=1", ["data.seed is 0", "1 now"]),
        ("data.lanes=8", ["plan.lanes", "8"]),
    ],
)
def test_a_resumed_run_may_not_change_what_decides_order_or_shape(finished, assignment, words):
    settings = (finished.folder / "settings.toml").read_text()
    metrics = finished.metrics

    ended = finished.train("-s", assignment, "-s", "train.steps=4")

    _refused(ended, 1, *words)
    assert (finished.folder / "settings.toml").read_text() == settings
    assert finished.metrics == metrics


def test_a_resumed_run_may_change_the_rest(finished):
    ended = finished.train("-s", "train.steps=4", "-s", "checkpoint.every=1", "-s", "train.learning_rate=1e-3")
    assert ended.code == 0, ended.err
    assert [line["step"] for line in finished.metrics] == [1, 2, 3, 4]
    assert "steps = 4" in (finished.folder / "settings.toml").read_text()


def test_another_corpus_is_refused_by_its_fingerprint(finished, tmp_path):
    finished.corpus = runs.write_corpus(tmp_path / "another", shards=3)
    _refused(finished.train(), 1, "fingerprint")


def test_a_finished_run_says_so(finished):
    ended = finished.train("-s", "train.steps=2")
    assert ended.code == 0
    assert "nothing to do" in ended.err


def test_a_broken_checkpoint_is_passed_over_with_a_warning(run):
    assert run.train("-s", "train.steps=14").code == 0
    newest = max(_tensor_files(run.folder / "checkpoints"), key=lambda path: path.stat().st_mtime_ns)
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(data)

    ended = run.train("-s", "train.steps=16")

    assert ended.code == 0, ended.err
    assert "resuming after step 7" in ended.err
    assert [line["step"] for line in run.metrics] == list(range(1, 17))


def _tensor_files(folder: Path) -> list[Path]:
    return list(folder.rglob("*.safetensors"))
