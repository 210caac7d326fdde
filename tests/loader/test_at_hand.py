"""Who reads whole samples: the consumer where nothing but copying is to be done, threads where something is waited for."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import corpora
import iostack_webdataset
import pytest
from worker_transforms import decode_number

import iostack
from iostack.corpus.contracts import Sample
from iostack.corpus.index import build_manifest

from .pipelines import Corpora, make

Readers = list[str]


@pytest.fixture
def readers(monkeypatch: pytest.MonkeyPatch) -> Readers:
    """The threads that read samples of tars, one after the other."""
    names: Readers = []
    read = iostack_webdataset.TarReader.read

    def noted(self: Any, rows: Sequence[int]) -> Sequence[Sample | Exception]:
        names.append(threading.current_thread().name.rpartition("-")[0] or "consumer")
        return read(self, rows)

    monkeypatch.setattr(iostack_webdataset.TarReader, "read", noted)
    return names


@pytest.fixture
def counted(tmp_path: Path) -> iostack.Corpus:
    """Three shards that no loader has opened."""
    for shard in range(3):
        corpora.write_tar(tmp_path / f"{shard}.tar", corpora.images(40, 40 * shard))
    build_manifest(tmp_path)
    return iostack.open_corpus(tmp_path)


def _ids(loader: iostack.Loader, number: int) -> list[Any]:
    with loader:
        return [batch["sample_ids"].tolist() for batch in islice(loader, number)]


def test_threads_open_shards_and_the_consumer_reads_them(counted: iostack.Corpus, readers: Readers) -> None:
    _ids(iostack.Loader(counted, batch_size=8), 60)
    assert readers[0] == "iostack-decode"
    assert set(readers[len(readers) // 2 :]) == {"consumer"}


def test_the_consumer_reads_what_units_have_opened(small: Corpora, readers: Readers) -> None:
    _ids(make(small, "rows"), 10)
    assert set(readers) == {"consumer"}


def test_while_reading_waits_for_the_disk_threads_read_ahead_and_the_order_is_the_same(
    small: Corpora, readers: Readers, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = _ids(make(small, "rows"), 150)
    readers.clear()
    faults = iter(range(1_000_000))
    most = 10

    def getrusage(whose: int) -> Any:
        return SimpleNamespace(ru_majflt=min(next(faults), most))

    monkeypatch.setattr("iostack.loader.samples.disk_waits.resource.getrusage", getrusage)
    assert _ids(make(small, "rows"), 150) == expected
    assert "iostack-decode" in readers
    assert readers[-1] == "consumer"  # pages are in memory again


@pytest.mark.parametrize("workers", [0, 1])
def test_samples_with_transforms_are_left_to_threads_and_workers(
    small: Corpora, readers: Readers, workers: int
) -> None:
    _ids(make(small, "rows", transforms=[decode_number], workers=workers), 10)
    assert "consumer" not in readers
