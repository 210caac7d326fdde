"""Threads end with what needed them, errors come through with where they happened, and nothing waits for ever."""

from __future__ import annotations

import gc
import signal
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import corpora
import pytest

import iostack
from iostack.corpus.contracts import Sample
from iostack.corpus.index import build_manifest
from iostack.errors import CorpusError, PluginError, ShardError, UsageError
from iostack.loader import threads

from .pipelines import ENDLESS, Corpora, make

THREADED = [name for name in ENDLESS if name not in ("tokens", "tokens split", "tokens of litdata")]


def _threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("iostack")]


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    gc.collect()
    assert _threads() == []


@pytest.mark.parametrize("pipeline", THREADED)
def test_leaving_the_loop_ends_the_threads(small: Corpora, pipeline: str) -> None:
    loader = make(small, pipeline)
    for _ in loader:
        break
    assert _threads() == []
    assert loader.position == 12


@pytest.mark.parametrize("pipeline", THREADED)
def test_close_ends_the_threads_and_iterating_goes_on_where_it_was(small: Corpora, pipeline: str) -> None:
    whole = [batch["sample_ids"].tolist() for batch in islice(make(small, pipeline), 4)]
    loader = make(small, pipeline)
    batches = iter(loader)
    next(batches)
    assert _threads() != []
    loader.close()
    assert _threads() == []
    with pytest.raises(UsageError, match="ended"):
        next(batches)
    assert [batch["sample_ids"].tolist() for batch in islice(loader, 3)] == whole[1:]
    loader.close()
    loader.close()


@pytest.mark.parametrize("pipeline", ["tokens", "texts", "rows"])
def test_a_new_iterator_ends_the_one_before_it(small: Corpora, pipeline: str) -> None:
    whole = [batch["sample_ids"].tolist() for batch in islice(make(small, pipeline), 3)]
    with make(small, pipeline) as loader:
        old, never_begun = iter(loader), iter(loader)
        with pytest.raises(UsageError, match="ended by a newer one"):
            next(old)
        old, new = never_begun, iter(loader)
        assert next(new)["sample_ids"].tolist() == whole[0]
        with pytest.raises(UsageError, match="ended"):
            next(old)
        assert next(new)["sample_ids"].tolist() == whole[1]
        loader.load_state_dict(loader.state_dict())
        with pytest.raises(UsageError, match="load_state_dict"):
            next(new)
        assert next(iter(loader))["sample_ids"].tolist() == whole[2]


@pytest.mark.parametrize("pipeline", THREADED)
def test_a_forgotten_loader_leaves_no_thread(small: Corpora, pipeline: str) -> None:
    batches: Any = iter(make(small, pipeline))
    next(batches)
    del batches


@pytest.mark.parametrize("pipeline", ["rows", "rows counted"])
def test_what_a_reader_raises_comes_through_with_shard_and_row(
    small: Corpora, pipeline: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = small["tar" if pipeline == "rows" else "tar counted"]

    def read(self: Any, rows: Any) -> Any:
        raise RuntimeError("reader broke")

    monkeypatch.setattr(type(corpus.open_shard(0)), "read", read)
    with pytest.raises(PluginError, match=r"\d\.tar failed on rows \[\d+.*RuntimeError: reader broke"):
        next(iter(make(small, pipeline)))


@pytest.mark.parametrize("counted", [True, False])
@pytest.mark.parametrize("seq_len", [None, 8])
def test_a_shard_that_shrank_since_it_was_listed_is_an_error_that_names_it(
    tmp_path: Path, counted: bool, seq_len: int | None
) -> None:
    path = corpora.write_jsonl(tmp_path / "c" / "a.jsonl", corpora.texts(50))
    if counted:
        build_manifest(tmp_path / "c")
    loader = iostack.Loader(iostack.open_corpus(tmp_path / "c"), batch_size=2, seq_len=seq_len)
    corpora.write_jsonl(path, corpora.texts(20))
    with pytest.raises(ShardError, match=r"a\.jsonl shrank") as caught:
        next(iter(loader))
    assert "iostack index" in caught.value.hint


class Stuck:
    """A transform that stands still from its ``after``-th sample on, until it is let go."""

    def __init__(self, after: int = 0) -> None:
        self.left = after
        self.go_on = threading.Event()

    def __call__(self, sample: Sample) -> Sample:
        self.left -= 1
        if self.left < 0:
            assert self.go_on.wait(timeout=60)
        return sample


@pytest.mark.parametrize(
    ("pipeline", "told"),
    [("texts", r"unit \d of .*jsonl did not come in"), ("rows", "the batch at position 0 did not come in")],
)
def test_work_that_never_ends_is_an_error_after_a_deadline_and_does_not_hang_the_end(
    small: Corpora,
    pipeline: str,
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(threads, "_PATIENCE_S", 0.01)
    monkeypatch.setattr(threads, "_CLOSING_S", 0.01)
    stuck = Stuck()
    loader = make(small, pipeline, transforms=[stuck], threads=1)
    with pytest.raises(CorpusError, match=told):
        next(iter(loader))
    assert "left behind" in caplog.text
    left = [thread for thread in threading.enumerate() if thread.name.startswith("iostack")]
    stuck.go_on.set()
    for thread in left:
        thread.join(timeout=60)


def test_a_time_out_of_the_work_itself_is_not_taken_for_the_deadline(small: Corpora, monkeypatch: Any) -> None:
    def open_shard(shard: int) -> Any:
        raise TimeoutError("the socket timed out")

    monkeypatch.setattr(small["texts"], "open_shard", open_shard)
    with pytest.raises(TimeoutError, match="the socket timed out"):
        next(iter(make(small, "texts")))


def test_an_error_leaves_the_loader_where_it_was(small: Corpora, monkeypatch: pytest.MonkeyPatch) -> None:
    for pipeline in ("texts", "rows"):
        whole = [batch["sample_ids"].tolist() for batch in islice(make(small, pipeline), 40)]
        corpus = small["texts" if pipeline == "texts" else "tar"]
        opened = corpus.open_shard
        failures = iter([True] + [False] * 1000)

        def open_shard(shard: int, opened: Any = opened, failures: Iterator[bool] = failures) -> Any:
            if shard == 3 and next(failures):
                raise ShardError("the disk was away")
            return opened(shard)

        monkeypatch.setattr(corpus, "open_shard", open_shard)
        with make(small, pipeline) as loader:
            found = []
            batches = iter(loader)
            with pytest.raises(ShardError, match="was away"):
                found += [batch["sample_ids"].tolist() for batch in batches]
            found = whole[: loader.position // 12]
            found += [batch["sample_ids"].tolist() for batch in islice(loader, len(whole) - len(found))]
        assert found == whole


@pytest.mark.parametrize("pipeline", ["tokens", "texts counted", "rows counted"])
def test_taking_batches_needs_no_more_memory_in_the_end_than_at_the_start(small: Corpora, pipeline: str) -> None:
    # Peaks, for a run of batches that was just planned holds more than one that is nearly used up.
    with make(small, pipeline, lookahead_bytes="1 KiB", batch_size=48) as loader:
        batches = iter(loader)
        for _ in islice(batches, 300):
            pass
        tracemalloc.start()
        try:
            for _ in islice(batches, 200):
                pass
            _, before = tracemalloc.get_traced_memory()
            tracemalloc.reset_peak()
            for _ in islice(batches, 600):
                pass
            _, after = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert after - before < 400_000  # what a run of batches is planned with differs by that much


INTERRUPTED = """
import signal, sys, threading, iostack
import iostack.loader.threads
signal.signal(signal.SIGINT, signal.default_int_handler)  # shells have what runs in their background ignore it
iostack.loader.threads._CLOSING_S = 0.1
def stand_still(sample):
    print("waiting", flush=True)
    threading.Event().wait()
loader = iostack.Loader(iostack.open_corpus(sys.argv[1]), batch_size=2, transforms=[stand_still], threads=1)
try:
    next(iter(loader))
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


def test_an_interrupt_ends_a_process_even_where_a_thread_stands_still_for_ever(tmp_path: Path) -> None:
    path = corpora.write_jsonl(tmp_path / "a.jsonl", corpora.texts(50))
    command = [sys.executable, "-c", INTERRUPTED, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "waiting\n"
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=60)
    assert "interrupted" in rest
    assert process.returncode == 0


LEFT_OPEN = """
import sys, iostack
loader = iostack.Loader(iostack.open_corpus(sys.argv[1]), batch_size=2, seq_len=int(sys.argv[2]) or None)
batches = iter(loader)
next(batches)
"""


@pytest.mark.parametrize("kind", ["tokens", "texts", "rows"])
def test_a_script_that_ends_inside_its_loop_ends_silently(tmp_path: Path, kind: str) -> None:
    if kind == "tokens":
        corpora.write_tokens(tmp_path / "a", [[list(range(1000))]])
    else:
        corpora.write_jsonl(tmp_path / "a.jsonl", corpora.texts(200))
    command = [sys.executable, "-c", LEFT_OPEN, str(tmp_path), "0" if kind == "rows" else "8"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
