"""Every second is put under one stage: what threads do, and what the consumer waits for."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import corpora
import pytest
from http_store import serve
from hypothesis import given
from hypothesis import strategies as st

import iostack
from iostack.corpus.contracts import Sample
from iostack.corpus.index import build_manifest
from iostack.errors import PluginError
from iostack.loader import threads
from iostack.stages import STAGES, Tally, count, shared_out, stage, tallying, waiting_for

from .pipelines import ENDLESS, Corpora, make


class Clock:
    """Stands still but for ``pass_s``: in threads of a pool that lets time pass only while somebody waits for a work."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._num_waiting = 0
        self._now_s = 0.0

    def pass_s(self, seconds: float) -> None:
        with self._changed:
            if threading.current_thread() is not threading.main_thread():
                assert self._changed.wait_for(lambda: self._num_waiting, timeout=30)
            self._now_s += seconds

    def perf_counter(self) -> float:
        return self._now_s

    def wait_for(self, *arguments: Any, **settings: Any) -> Any:
        with self._changed:
            self._num_waiting += 1
            self._changed.notify_all()
        try:
            return threads.wait_for(*arguments, **settings)
        finally:
            with self._changed:
                self._num_waiting -= 1


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("iostack.stages.clock", clock)
    monkeypatch.setattr("iostack.loader.metering.meter.wait_for", clock.wait_for)
    monkeypatch.setattr("iostack.loader.loader.time", SimpleNamespace(perf_counter=clock.perf_counter))
    return clock


@pytest.fixture
def texts(tmp_path: Path) -> Iterator[iostack.Corpus]:
    for shard in range(4):
        corpora.write_jsonl(tmp_path / "texts" / f"{shard}.jsonl", corpora.texts(20, 20 * shard))
    build_manifest(tmp_path / "texts")
    with iostack.open_corpus(tmp_path / "texts") as corpus:
        yield corpus


def _waits(loader: iostack.Loader) -> dict[str, float]:
    return {name: figures.wait_s for name, figures in loader.stages().items() if figures.wait_s > 1e-9}


def test_time_inside_an_inner_stage_is_not_that_of_the_outer_one(clock: Clock) -> None:
    tally = Tally("assemble")
    with tallying(tally):
        clock.pass_s(1)
        with stage("origin"):
            clock.pass_s(2)
            with stage("cache", samples=3, num_bytes=30):
                clock.pass_s(4)
            clock.pass_s(8)
        clock.pass_s(16)
    clock.pass_s(32)
    assert tally.busy_s == {"assemble": 17, "origin": 10, "cache": 4}
    assert (tally.samples, tally.bytes) == ({"cache": 3}, {"cache": 30})


def test_waiting_for_another_work_goes_to_what_that_work_did(clock: Clock) -> None:
    fetch, work = Tally("origin"), Tally("read")
    with tallying(fetch):
        clock.pass_s(3)
        with stage("cache"):
            clock.pass_s(1)
    with tallying(work):
        clock.pass_s(5)
        with waiting_for(fetch):
            clock.pass_s(8)
    assert work.busy_s == {"read": 5}
    assert work.waited_s == {"origin": 6, "cache": 2}


def test_waiting_for_work_that_never_began_goes_to_where_it_would_have_begun() -> None:
    assert shared_out(2.0, Tally("origin")) == {"origin": 2.0}


SECONDS = st.floats(0, 1e6, allow_subnormal=False)


@given(SECONDS, *(st.dictionaries(st.sampled_from(STAGES), SECONDS) for _ in range(2)))
def test_shares_sum_to_what_was_waited(seconds: float, busy_s: dict[str, float], waited_s: dict[str, float]) -> None:
    tally = Tally("read")
    tally.busy_s, tally.waited_s = busy_s, waited_s
    shares = shared_out(seconds, tally)
    assert sum(shares.values()) == pytest.approx(seconds)
    assert all(share >= 0 for share in shares.values())


def test_nothing_is_measured_where_no_tally_is_open() -> None:
    with stage("read", samples=1), waiting_for(tally := Tally("origin")):
        count("read", samples=1)
    assert not tally.samples
    assert not tally.waited_s


@pytest.mark.parametrize("settings", [{}, {"seq_len": 16}], ids=["rows", "texts"])
def test_a_slow_transform_is_what_the_consumer_waits_for(
    texts: iostack.Corpus, clock: Clock, settings: dict[str, Any]
) -> None:
    def slow(sample: Sample) -> Sample:
        clock.pass_s(1)
        return sample

    with iostack.Loader(texts, batch_size=8, lanes=1, threads=1, transforms=[slow], epochs=1, **settings) as loader:
        batches = list(loader)
    stages = loader.stages()
    assert stages["decode"].busy_s == stages["decode"].samples >= 80
    assert len(batches) > 1
    assert _waits(loader) == {"decode": pytest.approx(loader.data_wait_s)}
    assert loader.data_wait_s == stages["decode"].busy_s


def test_a_slow_reader_is_what_the_consumer_waits_for(
    texts: iostack.Corpus, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = texts.open_shard

    def open_slowly(shard: int) -> Any:
        clock.pass_s(1)
        return opened(shard)

    monkeypatch.setattr(texts, "open_shard", open_slowly)
    with iostack.Loader(texts, batch_size=8, threads=1, epochs=1) as loader:
        assert len(list(loader)) == 10
    assert loader.stages()["read"].busy_s == 4
    assert _waits(loader) == {"read": pytest.approx(loader.data_wait_s)}


def test_a_slow_origin_is_what_the_consumer_waits_for(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("iostack.loader.ahead.residency._FETCH_THREADS", 1)
    for shard in range(6):
        corpora.write_tokens(tmp_path / f"{shard}", [[[*range(300)]]])
    with serve({f"/c/{path.name}": path.read_bytes() for path in tmp_path.iterdir()}) as store:
        corpus = iostack.open_corpus(f"{store.uri}/c/", cache_dir=tmp_path / "cache")
        fetch = corpus._place.origin.fetch

        def fetch_slowly(path: str, destination: Path) -> None:
            clock.pass_s(1)
            fetch(path, destination)

        monkeypatch.setattr(corpus._place.origin, "fetch", fetch_slowly)
        with iostack.Loader(corpus, batch_size=4, seq_len=16, lanes=1, epochs=1) as loader:
            assert len(list(loader)) > 10
    stages = loader.stages()
    assert stages["origin"].busy_s == 12  # a .bin and an .idx of each shard
    assert stages["origin"].bytes == sum(path.stat().st_size for path in tmp_path.glob("?.*"))
    assert (loader.meter.cache_hits, loader.meter.cache_misses) == (0, 12)
    assert _waits(loader) == {"origin": pytest.approx(loader.data_wait_s)}


def test_what_the_consumer_does_itself_is_no_waiting(texts: iostack.Corpus, clock: Clock) -> None:
    with iostack.Loader(texts, batch_size=8) as loader:
        for _ in islice(loader, 5):
            clock.pass_s(1)
    assert loader.data_wait_s == 0
    # The last batch is not followed by another: its second belongs to nobody.
    assert loader.stages()["consumer"].busy_s == 4


def test_a_wait_that_ends_with_an_error_is_counted(texts: iostack.Corpus, clock: Clock) -> None:
    def fail(sample: Sample) -> Sample:
        clock.pass_s(1)
        raise ConnectionError("storage is away")

    with (
        iostack.Loader(texts, batch_size=8, threads=1, transforms=[fail]) as loader,
        pytest.raises(PluginError, match="storage is away"),
    ):
        next(iter(loader))
    assert loader.stages()["decode"].busy_s >= 1


@pytest.mark.parametrize("pipeline", ENDLESS)
def test_waits_of_all_stages_are_the_time_waited(small: Corpora, pipeline: str) -> None:
    with make(small, pipeline) as loader:
        for _ in islice(loader, 40):
            stages = loader.stages()
            assert sum(figures.wait_s for figures in stages.values()) == pytest.approx(loader.data_wait_s)
    assert tuple(stages) == STAGES
    assert stages["assemble"].samples >= 12 * loader.meter.batches > 0
    assert stages["assemble"].bytes > 0
    assert all(figures.busy_s >= 0 for figures in stages.values())
    if not pipeline.startswith("tokens"):
        assert stages["read"].samples == stages["decode"].samples > 0
        assert stages["read"].bytes == stages["decode"].bytes > 0


def test_a_second_pass_finds_its_shards_in_the_cache(tmp_path: Path) -> None:
    for name in ("0", "1"):
        plain = corpora.write_jsonl(tmp_path / "plain" / name, corpora.texts(20))
        (tmp_path / f"{name}.jsonl.gz").write_bytes(gzip.compress(plain.read_bytes()))
    hits, misses = [], []
    for _ in range(2):
        with iostack.open_corpus(tmp_path, cache_dir=tmp_path / "cache") as corpus:
            with iostack.Loader(corpus, batch_size=4, epochs=1) as loader:
                assert sum(int(batch["valid"].sum()) for batch in loader) == 40
            hits.append(loader.meter.cache_hits)
            misses.append(loader.meter.cache_misses)
    assert (hits, misses) == ([0, 2], [2, 0])
