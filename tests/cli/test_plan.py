"""``iostack plan``: what it prints is what a loader then gives, and what it writes is what a loader then leaves out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import corpora
import numpy as np
import pytest

import iostack
from iostack.cli import main
from iostack.corpus.index import build_manifest
from iostack.loader.order.planned import Source
from iostack.loader.order.skip_list import read_skip_list
from iostack.testing import take_steps

RUN = """
[data]
seq_len = 32
batch_size = 6
seed = 3
window = "1 KiB"
[[data.sources]]
uri = "{folder}/tokens"
weight = 2
[[data.sources]]
uri = "{folder}/texts"
[[data.phases]]
after_samples = 20
weights = [1, 0]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    for shard in range(4):
        corpora.write_tokens(tmp_path / "tokens" / f"{shard}", [[random.integers(0, 250, 900).tolist()]])
    for shard in range(3):
        corpora.write_jsonl(tmp_path / "texts" / f"{shard}.jsonl", corpora.texts(60, 60 * shard))
        corpora.write_jsonl(tmp_path / "counted" / f"{shard}.jsonl", corpora.texts(60, 60 * shard))
    build_manifest(tmp_path / "counted")
    return tmp_path


def _lines(capsys: pytest.CaptureFixture[str], *arguments: object) -> list[dict[str, Any]]:
    assert main(["plan", *map(str, arguments), "--json"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def _given(corpus: Any, num_steps: int, ranks: int = 1, **settings: Any) -> list[dict[str, Any]]:
    """The rows that loaders give, with their steps and ranks."""
    batch_size = settings["batch_size"]
    loaders = [iostack.Loader(corpus, rank=rank, ranks=ranks, **settings) for rank in range(ranks)]
    steps = list(take_steps(loaders, num_steps))
    for loader in loaders:
        loader.close()
    return [
        row | {"step": step, "rank": place % ranks, "position": (step - 1) * batch_size + place}
        for step, rows in enumerate(steps, start=1)
        for place, row in enumerate(rows)
    ]


@pytest.mark.parametrize(
    ("name", "settings", "options"),
    [
        ("tokens", {"seq_len": 32}, ["--seq-len", 32]),
        ("tokens", {"seq_len": 32, "packing": "split"}, ["--seq-len", 32, "--packing", "split"]),
        ("texts", {"seq_len": 32}, ["--seq-len", 32]),
        ("counted", {"seq_len": 32}, ["--seq-len", 32]),
        ("texts", {}, []),
        ("counted", {}, []),
        ("counted", {"lanes": 4, "seed": 7, "window_bytes": 500}, ["--lanes", 4, "--seed", 7, "--window", 500]),
        (
            "counted",
            {"filters": [{"name": "where", "column": "n", "op": "<", "value": 50}]},
            ["--filter", '{"name": "where", "column": "n", "op": "<", "value": 50}'],
        ),
    ],
    ids=lambda value: "" if isinstance(value, list) else str(value)[:30],
)
@pytest.mark.parametrize("ranks", [1, 3])
def test_what_it_prints_is_what_loaders_then_give(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    settings: dict[str, Any],
    options: list[Any],
    ranks: int,
) -> None:
    planned = _lines(capsys, folder / name, *options, "--steps", "2:5", "--batch-size", 6, "--ranks", ranks)
    with iostack.open_corpus(folder / name) as corpus:
        given = _given(corpus, 5, ranks, batch_size=6, **settings)[6:]
        for line, row in zip(planned, given, strict=True):
            assert {key: line[key] for key in ("step", "rank", "position")} == {
                key: row[key] for key in ("step", "rank", "position")
            }
            assert line["sample_id"] == row["sample_ids"]
            paths = [corpus.manifest.path(shard) for shard in range(corpus.num_shards)]
            reader = corpus.open_shard(paths.index(line["shard"]))
            if "token" in line:
                tokens = reader.tokens[line["token"] :][:33]  # type: ignore[attr-defined]
                assert tokens.tolist() == row["tokens"]
            elif "row" in line and "n" in row:
                assert reader.read([line["row"]])[0]["n"] == row["n"]  # type: ignore[index]
            elif "unit_rows" in line:
                first, last = line["unit_rows"]
                assert 0 <= first <= last < 60


def test_a_settings_file_plans_its_mix_with_its_phases(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = folder / "run.toml"
    config.write_text(RUN.format(folder=folder))
    planned = _lines(capsys, "-c", config, "--steps", "1:8")
    mix = [Source(iostack.open_corpus(folder / "tokens"), 2), iostack.open_corpus(folder / "texts")]
    given = _given(mix, 8, batch_size=6, seq_len=32, seed=3, window_bytes=1024, phases=[(20, [1, 0])])
    assert [line["sample_id"] for line in planned] == [row["sample_ids"] for row in given]
    assert {line["source"] for line in planned[:20]} == {0, 1}
    assert {line["source"] for line in planned[24:]} == {0}


def test_a_skip_list_of_a_spike_is_one_that_the_loader_honours(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = folder / "skip.json"
    options = (folder / "tokens", "--seq-len", 32, "--batch-size", 6)
    spike = _lines(capsys, *options, "--spike", "3:4", "--write-skip", path)
    listed = {line["sample_id"] for line in spike}
    assert len(listed) == 12
    entry = json.loads(path.read_text())["samples"][0]
    assert entry.items() >= {"source": 0, "shard": spike[0]["shard"], "row": spike[0]["row"]}.items()
    with iostack.open_corpus(folder / "tokens") as corpus:
        given = _given(corpus, 20, batch_size=6, seq_len=32, skip=path)
        numbered_by = {"seq_len": 32, "packing": "none"}
        assert len(read_skip_list(path, fingerprint=corpus.fingerprint, numbered_by=numbered_by)) == 12
    assert not listed & {row["sample_ids"] for row in given}
    planned = _lines(capsys, *options, "--steps", "1:20", "--skip", path)
    assert [line["sample_id"] for line in planned] == [row["sample_ids"] for row in given]


def test_a_metrics_file_tells_where_the_loss_leaps(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    losses = [4.0 - step / 100 + (step % 3) / 50 for step in range(1, 31)]
    losses[19], losses[24] = 9.0, None  # type: ignore[call-overload]
    metrics = folder / "metrics.jsonl"
    lines = [{"step": step, "loss": loss, "position": (step - 1) * 12} for step, loss in enumerate(losses, start=1)]
    metrics.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert main(["plan", str(folder / "tokens"), "--seq-len", "32", "--batch-size", "2", "--spike", str(metrics)]) == 0
    captured = capsys.readouterr()
    assert captured.err.splitlines()[0].startswith("step 20: loss 9.0000, 3.92")
    rows = [line.split("\t") for line in captured.out.splitlines()[1:]]
    assert [(row[0], row[2]) for row in rows] == [("20", "228"), ("20", "229"), ("25", "288"), ("25", "289")]
    for line in ('{"step": 1}', '{"step": 1, "position": -5, "loss": 1}', '{"step": 1e400, "position": 5, "loss": 1}'):
        metrics.write_text(f"{line}\n")
        assert main(["plan", str(folder / "tokens"), "--seq-len", "32", "--spike", str(metrics)]) == 2
        assert "line 1 of" in capsys.readouterr().err


def test_leaps_of_a_file_are_found_in_any_order(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = folder / "backward.jsonl"
    metrics.write_text("".join(f'{{"step": {step}, "position": {2 * step}, "loss": NaN}}\n' for step in (9, 1, 4)))
    rows = _lines(capsys, folder / "texts", "--seq-len", 8, "--batch-size", 2, "--spike", metrics)
    assert [row["step"] for row in rows] == [1, 1, 4, 4, 9, 9]


@pytest.mark.parametrize("name", ["tokens", "texts"])
def test_topologies_are_proved_equal(folder: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    [proof] = _lines(
        capsys, folder / name, "--seq-len", 32, "--batch-size", 12, "--prove", "1,2,3,12", "--steps", "2:4"
    )
    assert {"ranks": [1, 2, 3, 12], "steps": 3, "samples": 36}.items() <= proof.items()


def test_a_difference_between_topologies_would_be_named(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from iostack.plan.topology import Topology

    plain = Topology.positions
    monkeypatch.setattr(Topology, "positions", lambda self, start, num: plain(self, start, num) // 4 * 4)
    options = ["--seq-len", "32", "--batch-size", "4", "--prove", "1,2"]
    assert main(["plan", str(folder / "tokens"), *options]) == 2
    assert "step 1 on 1 ranks: 4 ranks take position 0" in capsys.readouterr().err
    monkeypatch.setattr(Topology, "positions", lambda self, start, num: plain(self, start, num) + 4 * (self.ranks - 1))
    assert main(["plan", str(folder / "tokens"), *options]) == 2
    assert "step 1, position 0: 1 ranks give sample" in capsys.readouterr().err


def test_a_whole_window_shuffles_as_well_as_a_permutation_and_small_ones_do_not(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = (folder / "counted", "--lanes", 1, "--quality")
    whole, small = (
        {line["name"]: line for line in _lines(capsys, *options, "--window", window)} for window in ("1 GiB", "100")
    )
    for name, line in whole.items():
        assert abs(line["found"] - line["full"]) < 0.25, name
    assert small["correlation of neighbours"]["found"] > 0.6
    assert small["same shard, pairs in a batch"]["found"] > 2 * small["same shard, pairs in a batch"]["full"]


@pytest.mark.parametrize("name", ["counted", "texts"])
def test_costs_add_up(folder: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    total = sum(path.stat().st_size for path in (folder / name).glob("*.jsonl"))
    for nodes, lanes in ((1, 3), (3, 3), (2, 3)):
        [line] = _lines(capsys, folder / name, "--lanes", lanes, "--estimate", "--nodes", nodes)
        assert line["corpus_bytes"] == total >= line["largest_node_bytes"] >= line["mean_node_bytes"] > 0
        assert line["mean_node_bytes"] * nodes >= total - nodes
        assert 1 <= line["mean_node_requests"] <= 3
        assert 0 < line["live_bytes"] <= total


def test_no_shard_is_opened_and_torch_not_imported_where_arithmetic_suffices(folder: Path) -> None:
    code = (
        "import sys; from iostack.cli import main; import iostack.corpus.corpus as c\n"
        "def refuse(*_): raise AssertionError('a shard was opened')\n"
        "c.Corpus.open_shard = refuse\n"
        f"for extra in (['--steps', '1000000'], ['--prove', '1,8'], ['--quality'], ['--estimate']):\n"
        f"    assert main(['plan', {str(folder / 'tokens')!r}, '--seq-len', '32', *extra]) == 0\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, env=os.environ, timeout=120)


def test_a_finite_pass_has_no_samples_after_its_end(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = (folder / "counted", "--batch-size", 50, "--epochs", 1)
    assert len(_lines(capsys, *options, "--steps", "1:9")) == 180
    assert _lines(capsys, *options, "--steps", "5") == []


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "plan needs a URI"),
        (["tokens", "--steps", "0"], "no range of steps"),
        (["tokens", "--steps", "5:3"], "no range of steps"),
        (["tokens", "--steps", "x"], "no range of steps"),
        (["tokens", "--steps", str((1 << 63) - 1)], "no range of steps"),
        (["tokens", "--batch-size", str(10**11)], "not in the range"),
        (["tokens", "--steps", "1", "--write-skip", "."], "the skip list . cannot be written"),
        (["tokens", "--spike", "nothing.jsonl"], "no range of steps"),
        (["tokens", "--prove", "2"], "two or more numbers of ranks"),
        (["tokens", "--prove", "1,x"], "two or more numbers of ranks"),
        (["tokens", "--prove", "1,2", "--quality"], "exclude each other"),
        (["tokens", "--write-skip", "f"], "needs --spike or --steps"),
        (["tokens", "--ranks", "3"], "not divisible by 3 data ranks"),
        (["tokens", "--prove", "1,3"], "not divisible by 3 data ranks"),
        (["-c", "texts"], "neither a settings file nor the folder of a run"),
        (["-c", "texts/0.jsonl"], "neither a settings file nor the folder of a run"),
        (["tokens", "--skip", "texts/0.jsonl"], "cannot be read"),
        (["tokens", "--filter", "length"], "does not take these options"),
        (["nowhere"], "there is no such file or folder"),
    ],
)
def test_a_wrong_request_is_one_line_and_a_hint(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: list[str], told: str
) -> None:
    monkeypatch.chdir(folder)
    assert main(["plan", *arguments]) in (1, 2)
    captured = capsys.readouterr()
    error, hint = captured.err.splitlines()
    assert told in error
    assert hint.startswith("hint: ")
    assert captured.out == ""
