"""Worker processes give what threads give: the same samples, states, substitutes, reports and errors, even where they die."""

from __future__ import annotations

import logging
import os
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import corpora
import numpy as np
import pytest
import torch
import worker_transforms
from worker_transforms import Fail, Harm, Spawn

import iostack
from iostack.corpus.index import build_manifest
from iostack.errors import PlanError, PluginError, SettingsError, SubstitutionError
from iostack.loader.tasks.task import BatchTask
from iostack.loader.workers.messages import Status, read, write
from iostack.loader.workers.pool import Pool
from iostack.loader.workers.slots import SMALL_BYTES, Slot, anonymous_memory
from iostack.testing import check_resume_at_every_step

from .pipelines import Corpora, make
from .test_ends import wait_for, wait_until_gone

ALL_KINDS = [
    "texts transformed",
    "bad texts",
    "texts fitted",
    "rows transformed",
    "rows counted transformed",
    "rows keyed",
    "rows counted of arrow",
    "bad rows counted",
    "mix of three",
    "mix of rows",
]


@pytest.fixture(scope="module")
def numbers(tmp_path_factory: pytest.TempPathFactory) -> iostack.Corpus:
    """Four shards of ten samples, numbered by ``i``."""
    folder = tmp_path_factory.mktemp("numbers")
    for shard in range(4):
        rows = [{"i": 10 * shard + row, "text": f"text {10 * shard + row} " * 5} for row in range(10)]
        corpora.write_jsonl(folder / f"{shard}.jsonl", rows)
    build_manifest(folder)
    return iostack.open_corpus(folder)


def _loader(corpus: iostack.Corpus, *transforms: Any, **settings: Any) -> iostack.Loader:
    chosen = {"batch_size": 5, "lanes": 2, "workers": 2} | settings
    return iostack.Loader(corpus, transforms=list(transforms), **chosen)


def _numbers(batches: Iterator[Any]) -> list[list[int]]:
    return [batch["i"].tolist() for batch in batches]


def _plain(batches: Iterator[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {name: column.tolist() if isinstance(column, torch.Tensor) else column for name, column in batch.items()}
        for batch in batches
    ]


def _warnings(caplog: pytest.LogCaptureFixture) -> set[str]:
    return {record.getMessage() for record in caplog.records if record.name == "iostack.loader"}


@pytest.mark.parametrize("pipeline", ALL_KINDS)
def test_workers_give_the_batches_states_and_warnings_of_threads(
    small: Corpora, pipeline: str, caplog: pytest.LogCaptureFixture
) -> None:
    found, states, warnings = [], [], []
    for workers in (0, 2):
        caplog.clear()
        with make(small, pipeline, workers=workers) as loader:
            found.append(_plain(islice(loader, 12)))
            states.append((loader.state_dict(), loader.bad_samples.count > 0))
        warnings.append(_warnings(caplog))
    assert found[0] == found[1]
    assert states[0] == states[1]
    if "text" not in pipeline and "mix" not in pipeline:  # elsewhere, how far a lane looks ahead differs
        assert len(warnings[0] & warnings[1]) >= len(warnings[0]) / 2


@pytest.mark.slow
@pytest.mark.parametrize("pipeline", ["rows transformed", "texts transformed", "mix of three"])
def test_resuming_at_every_step_with_workers_equals_never_stopping(small: Corpora, pipeline: str) -> None:
    check_resume_at_every_step(
        lambda rank, ranks: make(small, pipeline, rank, ranks, workers=2), num_steps=1, ranks=(2,)
    )


def test_transforms_run_in_as_many_other_processes_as_were_asked_for(numbers: iostack.Corpus) -> None:
    with _loader(numbers, worker_transforms.with_pid) as loader:
        pids = {pid for batch in islice(loader, 20) for pid in batch["pid"].tolist()}
    assert len(pids) == 2
    assert os.getpid() not in pids


def test_values_of_every_kind_come_back_as_they_are_in_threads(numbers: iostack.Corpus) -> None:
    batches = []
    for workers in (0, 1):
        with _loader(numbers, worker_transforms.everything, workers=workers) as loader:
            batches.append(next(iter(loader)))
    expected, found = batches
    assert found.keys() == expected.keys()
    for name, column in expected.items():
        assert type(found[name]) is type(column), name
        if isinstance(column, torch.Tensor):
            assert found[name].dtype == column.dtype, name
            assert torch.equal(found[name], column), name
            found[name].zero_()  # it belongs to the consumer
        else:
            assert [type(value) for value in found[name]] == [type(value) for value in column], name
            assert repr(found[name]) == repr(column), name


def test_killing_workers_at_random_does_not_show_in_the_batches(numbers: iostack.Corpus) -> None:
    with _loader(numbers, worker_transforms.with_pid, workers=0) as loader:
        whole = _numbers(islice(loader, 60))
    draws, found = random.Random(0), []
    with _loader(numbers, worker_transforms.with_pid) as loader:
        for batch in islice(loader, 60):
            found.append(batch["i"].tolist())
            if draws.random() < 0.15:
                for pid in draws.sample(loader.worker_pids, min(1, len(loader.worker_pids))):
                    with suppress(ProcessLookupError):  # it has just been killed for another
                        os.kill(pid, signal.SIGKILL)
    assert found == whole


@pytest.mark.parametrize("what", ["crash", "exit", "kill"])
def test_a_sample_that_kills_one_worker_only_is_given_after_all(
    numbers: iostack.Corpus, what: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with _loader(numbers, workers=0) as loader:
        whole = _numbers(islice(loader, 10))
    with _loader(numbers, Harm(what, 17, once=str(tmp_path / "done")), workers=1) as loader:
        assert _numbers(islice(loader, 10)) == whole
        assert loader.bad_samples.count == 0
    how = {"crash": "was killed by SIGSEGV", "exit": "ended with exit code 7", "kill": "was killed by SIGKILL"}[what]
    assert f"a worker process {how} at " in caplog.text
    assert "1.jsonl row 7: another one takes over" in caplog.text


@pytest.mark.parametrize("what", ["crash", "exit"])
def test_programs_that_a_transform_has_started_end_with_a_worker_that_dies_by_itself(
    numbers: iostack.Corpus, what: str, tmp_path: Path
) -> None:
    starts, dies = Spawn(str(tmp_path / "pid")), Harm(what, 17, once=str(tmp_path / "done"))
    with _loader(numbers, starts, dies, workers=1) as loader:
        batches = iter(loader)
        assert len(_numbers(islice(batches, 10))) == 10
        assert Path(dies.once).exists()
        wait_until_gone(wait_for(tmp_path / "pid"))


def test_batches_that_take_no_time_are_done_several_in_a_task(
    numbers: iostack.Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    monkeypatch.setattr(Pool, "do", _counting(Pool.do, sizes))
    with _loader(numbers, worker_transforms.shout) as loader:
        batches = iter(loader)
        assert any(max(sizes) > 1 for _ in islice(batches, 2000))  # those planned before the first was timed come alone
    assert sizes[0] == 1
    sizes.clear()
    with _loader(numbers, worker_transforms.shout, lookahead_bytes=1) as loader:
        list(islice(loader, 20))
    assert set(sizes) == {1}


def _counting(do: Callable[..., Any], sizes: list[int]) -> Callable[..., Any]:
    def counting(self: Pool, task: BatchTask, **options: Any) -> Any:
        sizes.append(task.num_batches)
        return do(self, task, **options)

    return counting


@pytest.mark.parametrize("num_bytes", [0, 1, SMALL_BYTES - 300, SMALL_BYTES, SMALL_BYTES + 1, 3_000_000])
def test_messages_of_any_size_come_back_as_they_were_written(num_bytes: int) -> None:
    value = {"many": [np.arange(each) for each in range(60)], "one": np.arange(num_bytes).astype(np.uint8), "text": "ä"}
    slot = Slot(anonymous_memory())
    for status in (Status.TASK, Status.RESULT):
        found = read(slot, write(slot, 1, status, value))
        assert repr(found) == repr(value)
        assert (found["one"] == value["one"]).all()
        found["one"][...] = 0  # it is the consumer's
    slot.close()


@pytest.mark.parametrize("what", ["crash"])
def test_a_sample_that_always_kills_its_worker_is_substituted_as_a_bad_one_is(
    numbers: iostack.Corpus, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    found = []
    for harm, workers in ((Harm("unpicklable", 17), 0), (Harm(what, 17), 1)):
        with _loader(numbers, harm, workers=workers) as loader:
            found.append(_plain(islice(loader, 12)))
            assert loader.bad_samples.count == 1
    assert found[0] == found[1]
    assert "1.jsonl row 7 (its worker process" in caplog.text
    assert "3 times in a row): " in caplog.text


def test_a_text_that_always_kills_its_worker_is_substituted_in_its_unit(numbers: iostack.Corpus) -> None:
    found = []
    for harm, workers in ((Harm("unpicklable", 17), 0), (Harm("exit", 17), 1)):
        with _loader(numbers, harm, workers=workers, seq_len=16) as loader:
            found.append(_plain(islice(loader, 12)))
    assert found[0] == found[1]


def test_a_sample_that_hangs_is_named_killed_and_substituted(
    numbers: iostack.Corpus, caplog: pytest.LogCaptureFixture
) -> None:
    with _loader(numbers, Harm("hang", 17), workers=1, transform_timeout_s=1.0) as loader:
        found = _numbers(islice(loader, 9))
        assert loader.bad_samples.count == 1
    assert 17 not in {number for batch in found for number in batch}
    assert "1.jsonl row 7: its transforms have taken" in caplog.text
    assert "1.jsonl row 7 (its worker process was killed, since it took more than" in caplog.text


def test_more_killing_samples_than_the_budget_allows_are_an_error(numbers: iostack.Corpus) -> None:
    with (
        _loader(numbers, Harm("exit", 17), Harm("exit", 18), workers=1, max_bad_samples=1) as loader,
        pytest.raises(SubstitutionError, match="2 bad samples, more than the budget of 1"),
    ):
        list(islice(loader, 12))


def test_workers_that_die_before_their_first_task_are_an_error_and_no_sample_is_blamed(
    numbers: iostack.Corpus, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        _loader(numbers, worker_transforms.DiesAtStart(), workers=1) as loader,
        pytest.raises(PluginError, match="its worker process ended with exit code 9, 4 times in a row"),
    ):
        next(iter(loader))
    assert ".jsonl row " not in caplog.text


def test_batches_are_not_blamed_for_the_samples_that_kill_the_worker_they_wait_for(numbers: iostack.Corpus) -> None:
    found = []
    for what, workers in (("unpicklable", 0), ("exit", 1)):
        harm = [Harm(what, number) for number in (10, 12, 14, 16)]
        with _loader(numbers, *harm, workers=workers) as loader:
            found.append(_numbers(islice(loader, 8)))
            assert loader.bad_samples.count == 4
    assert found[0] == found[1]


def test_an_exception_that_cannot_be_pickled_makes_a_bad_sample_and_keeps_its_words(
    numbers: iostack.Corpus, caplog: pytest.LogCaptureFixture
) -> None:
    with _loader(numbers, Harm("unpicklable", 17)) as loader:
        assert len(list(islice(loader, 9))) == 9
    assert "1 and 2" in caplog.text


def test_an_error_that_is_not_the_samples_fault_comes_through_with_type_message_and_place(
    numbers: iostack.Corpus,
) -> None:
    with _loader(numbers, Fail()) as loader, pytest.raises(PluginError) as caught:
        next(iter(loader))
    assert "ConnectionResetError: [Errno 104] the server went away" in str(caught.value)
    assert ".jsonl row " in str(caught.value)
    assert "In the worker process:\nTraceback" in caught.value.__notes__[0]


def test_a_value_that_cannot_leave_the_worker_is_an_error_that_says_what_can(numbers: iostack.Corpus) -> None:
    with (
        _loader(numbers, worker_transforms.opaque) as loader,
        pytest.raises(PluginError, match="opaque things") as told,
    ):
        next(iter(loader))
    assert "numbers, text, bytes, arrays" in told.value.hint


def test_a_transform_without_a_name_in_a_module_is_refused_when_the_loader_is_made(numbers: iostack.Corpus) -> None:
    with pytest.raises(SettingsError, match="cannot go to worker processes") as caught:
        _loader(numbers, lambda sample: sample)
    assert "top level of a module" in caught.value.hint
    with pytest.raises(PlanError, match="workers"):
        _loader(numbers, workers=-1)


def test_transforms_and_tokenizers_given_by_name_are_built_in_the_workers(numbers: iostack.Corpus) -> None:
    found = []
    for workers in (0, 1):
        settings: dict[str, Any] = {"workers": workers, "seq_len": 16, "tokenizer": "bytes"}
        with _loader(numbers, {"name": "keep", "columns": ["text"]}, **settings) as loader:
            found.append(_plain(islice(loader, 3)))
    assert found[0] == found[1]


def test_tokens_start_no_worker(small: Corpora) -> None:
    with make(small, "tokens", workers=2) as loader:
        next(iter(loader))
        assert loader.worker_pids == []


@pytest.mark.parametrize("workers", [0, 1])
def test_the_slowest_samples_are_kept_with_their_places(numbers: iostack.Corpus, workers: int) -> None:
    with _loader(numbers, worker_transforms.slow_at_13, workers=workers) as loader:
        list(islice(loader, 8))
        slow = loader.slow_samples()
    assert (slow[0].source, slow[0].row) == (0, 3)
    assert slow[0].shard.endswith("1.jsonl")
    assert slow[0].seconds > 0.02
    assert len(slow) == 10
    assert [each.seconds for each in slow] == sorted((each.seconds for each in slow), reverse=True)


def test_a_slow_sample_is_logged_and_the_next_ones_are_not(caplog: pytest.LogCaptureFixture) -> None:
    from iostack.loader.transforming.slow_samples import SlowSamples

    slow = SlowSamples(lambda source, shard: f"{shard}.tar")
    with caplog.at_level(logging.WARNING):
        slow.add((0, 3, 7), 2.0)
        slow.add((0, 3, 8), 3.0)
    assert caplog.messages == ["slow sample 3.tar row 7: its transforms took 2.0 s"]


def test_a_worker_leaves_telling_of_slow_samples_to_its_parent(caplog: pytest.LogCaptureFixture) -> None:
    from iostack.loader.transforming.slow_samples import SlowSamples

    slow = SlowSamples()
    slow.add((0, 3, 7), 2.0)
    assert (caplog.messages, slow.places()) == ([], [((0, 3, 7), 2.0)])
