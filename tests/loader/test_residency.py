"""Remote shards are fetched once, ahead of need as far as the bound in bytes allows, and waiting for them is counted."""

from __future__ import annotations

import threading
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import corpora
import numpy as np
import pytest
from http_store import serve

import iostack
from iostack.corpus.index import build_manifest
from iostack.errors import CorpusError, OriginError
from iostack.loader import threads
from iostack.loader.ahead.in_flight import InFlight
from iostack.loader.ahead.residency import Residency
from iostack.loader.metering.meter import Meter
from iostack.plan.indexed import IndexedPlan

NUM_SHARDS, SHARD_BYTES = 12, 2000


def _token_files(folder: Path) -> dict[str, bytes]:
    random = np.random.default_rng(0)
    for shard in range(NUM_SHARDS):
        corpora.write_tokens(folder / f"{shard:02}", [[random.integers(0, 1000, SHARD_BYTES // 2).tolist()]])
    return {f"/c/{path.name}": path.read_bytes() for path in folder.iterdir()}


def _row_files(folder: Path) -> dict[str, bytes]:
    for shard in range(NUM_SHARDS):
        corpora.write_jsonl(folder / f"{shard:02}.jsonl", corpora.texts(40, 40 * shard))
    return {f"/c/{path.name}": path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("write", "settings"),
    [(_token_files, {"seq_len": 50}), (_row_files, {"seq_len": 50}), (_row_files, {})],
    ids=["tokens", "texts", "rows"],
)
@pytest.mark.parametrize("counted", [True, False])
def test_a_pass_over_a_remote_corpus_fetches_every_object_once_and_equals_the_local_one(
    tmp_path: Path, write: Callable[[Path], dict[str, bytes]], settings: dict[str, Any], counted: bool
) -> None:
    objects = write(tmp_path / "local")
    settings = settings | {"batch_size": 8, "lanes": 4, "epochs": 2, "window_bytes": 3000}
    if counted:
        build_manifest(tmp_path / "local")
        objects["/c/.iostack/manifest.arrow"] = (tmp_path / "local" / ".iostack" / "manifest.arrow").read_bytes()
    with serve(objects) as store:
        remote = iostack.Loader(iostack.open_corpus(f"{store.uri}/c/"), lookahead_bytes=5000, **settings)
        local = iostack.Loader(iostack.open_corpus(tmp_path / "local"), **settings)
        assert [batch["sample_ids"].tolist() for batch in remote] == [batch["sample_ids"].tolist() for batch in local]
        waits = {name: figures.wait_s for name, figures in remote.stages().items()}
        assert waits["origin"] > 0
        assert sum(waits.values()) == pytest.approx(remote.data_wait_s)
        shards = {path: count for path, count in store.gets.items() if "manifest" not in path and ".idx" not in path}
        assert len(shards) == NUM_SHARDS
        assert set(shards.values()) == {1}


class Fetches:
    """Stands between a corpus and its origin: notes what is fetched ahead and what is read, and can hold fetches up."""

    def __init__(self, corpus: iostack.Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
        self.started: list[int] = []
        self.ended = 0
        self.gate = threading.Event()
        self.gate.set()
        self._changed = threading.Condition()
        self._fetch = corpus.fetch_shard
        monkeypatch.setattr(corpus, "fetch_shard", self._held_up)

    def _held_up(self, shard: int) -> None:
        with self._changed:
            self.started.append(shard)
            self._changed.notify_all()
        assert self.gate.wait(timeout=60)
        try:
            self._fetch(shard)
        finally:  # fetches that are dropped end early
            with self._changed:
                self.ended += 1
                self._changed.notify_all()

    def wait_for(self, *, started: int = 0, ended: int = 0) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.started) >= started and self.ended >= ended, timeout=60)


@pytest.fixture
def remote(tmp_path: Path) -> Any:
    with serve(_token_files(tmp_path / "local")) as store:
        yield iostack.open_corpus(f"{store.uri}/c/")


@pytest.mark.parametrize("ahead", [1, 2, 5])
def test_what_is_fetched_but_unread_stays_within_the_bound(
    remote: iostack.Corpus, monkeypatch: pytest.MonkeyPatch, ahead: int
) -> None:
    fetches = Fetches(remote, monkeypatch)
    # One lane and one window over all shards: all of them are wanted at once.
    loader = iostack.Loader(
        remote, batch_size=1, seq_len=50, lanes=1, window_bytes="1 GiB", lookahead_bytes=ahead * SHARD_BYTES
    )
    read: set[int] = set()
    opened = remote.open_shard

    def open_shard(shard: int) -> Any:
        read.add(shard)
        return opened(shard)

    monkeypatch.setattr(remote, "open_shard", open_shard)
    batches = iter(loader)
    for _ in range(40):
        next(batches)
        assert len(set(fetches.started) - read) <= ahead
    expected = min(NUM_SHARDS, len(read) + ahead)
    fetches.wait_for(ended=len(fetches.started))
    loader.close()
    assert len(set(fetches.started) | read) >= expected


def test_look_ahead_goes_on_while_the_consumer_reads_what_is_there(
    remote: iostack.Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetches = Fetches(remote, monkeypatch)
    with iostack.Loader(remote, batch_size=1, seq_len=50, lanes=1, window_bytes="1 GiB") as loader:
        batches = iter(loader)
        next(batches)
        fetches.wait_for(ended=NUM_SHARDS - 1)
        assert len(fetches.started) == len(set(fetches.started))


def test_shards_that_a_lane_passes_unread_do_not_use_up_the_bound_for_ever(remote: iostack.Corpus) -> None:
    residency = Residency(remote, 2 * SHARD_BYTES, Meter(), InFlight(1 << 60))
    plan = IndexedPlan(np.full(NUM_SHARDS, 10), seed=0, lanes=1, window=10)
    zero = np.zeros(1, np.int64)
    try:
        for window in range(NUM_SHARDS - 1):
            # Nothing is ever read: yet the shards of each window are wanted, and so fetched, when their turn comes.
            residency.want_windows(plan, zero, zero + 10 * window)
            for fetch in list(residency._fetches.values()):
                fetch.future.result(timeout=60)
            for shard in plan.live_shards(0, 10 * window).tolist():
                assert remote.is_resident(shard)
    finally:
        residency.close()


def test_a_loader_that_goes_back_looks_ahead_again(remote: iostack.Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    settings: dict[str, Any] = {"batch_size": 4, "seq_len": 50, "lanes": 2, "window_bytes": SHARD_BYTES}
    loader = iostack.Loader(remote, **settings)
    start = loader.state_dict()
    list(islice(loader, 5))
    wanted: list[int] = []

    def is_resident(shard: int) -> bool:
        wanted.append(shard)
        return True

    monkeypatch.setattr(remote, "is_resident", is_resident)
    loader.load_state_dict(start)
    loader._batches.close()  # forgets the open shards, as if many others had come since
    next(iter(loader))
    loader.close()
    assert wanted != []


def test_a_failing_fetch_is_an_error_where_its_shard_is_needed(tmp_path: Path) -> None:
    objects = _token_files(tmp_path / "local")
    with serve(objects) as store:
        loader = iostack.Loader(iostack.open_corpus(f"{store.uri}/c/"), batch_size=4, seq_len=50)
        for path in list(store.objects):
            if path.endswith(".bin"):
                store.objects[path] = b""
        with pytest.raises((OriginError, CorpusError), match=r"\d\d\.bin"):
            next(iter(loader))


def test_a_fetch_that_never_ends_is_an_error_that_names_the_shard(
    remote: iostack.Corpus, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(threads, "_PATIENCE_S", 0.01)
    monkeypatch.setattr(threads, "_CLOSING_S", 0.01)
    fetches = Fetches(remote, monkeypatch)
    fetches.gate.clear()
    loader = iostack.Loader(remote, batch_size=1, seq_len=50, lanes=1)
    with pytest.raises(CorpusError, match=r"\d\d\.bin did not come in 0 s"):
        next(iter(loader))
    assert "left behind" in caplog.text
    left = [thread for thread in threading.enumerate() if thread.name.startswith("iostack")]
    fetches.gate.set()
    for thread in left:
        thread.join(timeout=60)


def test_closing_while_fetches_wait_and_iterating_again_works(
    remote: iostack.Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetches = Fetches(remote, monkeypatch)
    whole = iostack.Loader(remote, batch_size=2, seq_len=50, epochs=1)
    expected = [batch["sample_ids"].tolist() for batch in whole]
    assert fetches.started
    loader = iostack.Loader(remote, batch_size=2, seq_len=50, epochs=1)
    found = []
    for _ in range(5):
        found += [batch["sample_ids"].tolist() for batch in islice(loader, 3)]
        loader.close()
    assert found == expected[:15]


def test_a_fetch_that_was_dropped_by_closing_is_made_when_its_shard_is_needed(
    remote: iostack.Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "_CLOSING_S", 0.01)
    fetches = Fetches(remote, monkeypatch)
    fetches.gate.clear()
    residency = Residency(remote, NUM_SHARDS * SHARD_BYTES, Meter(), InFlight(1 << 60))
    plan = IndexedPlan(np.full(NUM_SHARDS, 10), seed=0, lanes=1, window=1000)
    residency.want_windows(plan, np.zeros(1, np.int64), np.zeros(1, np.int64))
    fetches.wait_for(started=4)
    residency.stop()
    fetches.gate.set()
    for shard in range(NUM_SHARDS):
        assert residency.reader(shard).counts.tokens == SHARD_BYTES // 2
    residency.close()
    fetches.wait_for(ended=4)


def test_what_is_needed_now_counts_as_in_flight_and_shortens_the_look_ahead(
    remote: iostack.Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetches = Fetches(remote, monkeypatch)
    in_flight = InFlight(NUM_SHARDS * SHARD_BYTES)
    plan = IndexedPlan(np.full(NUM_SHARDS, 10), seed=0, lanes=1, window=10 * NUM_SHARDS)
    zero = np.zeros(1, np.int64)
    residency = Residency(remote, NUM_SHARDS * SHARD_BYTES, Meter(), in_flight)
    try:
        with in_flight.holding((NUM_SHARDS - 3) * SHARD_BYTES):
            residency.want_windows(plan, zero, zero)
            fetches.wait_for(ended=3)
            assert in_flight.held_bytes == NUM_SHARDS * SHARD_BYTES
        first = fetches.started[0]
        residency.reader(first)
        fetches.wait_for(ended=NUM_SHARDS)
    finally:
        residency.close()
    assert in_flight.held_bytes == 0
