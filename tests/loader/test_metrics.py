"""Figures of loaders for Prometheus: named as documented, read at scrape time, no port but the one asked for."""

from __future__ import annotations

import gc
import threading
from itertools import islice
from urllib.request import urlopen

import pages
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

import iostack.metrics
from iostack.errors import UsageError
from iostack.stages import STAGES

from .pipelines import Corpora, make


def _served(server: iostack.metrics.Server) -> dict[str, dict[tuple[str, str], float]]:
    """Return {name: {(loader, stage): value}}."""
    with urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=30) as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    found: dict[str, dict[tuple[str, str], float]] = {}
    for family in families:
        for sample in family.samples:
            labels = sample.labels
            found.setdefault(sample.name, {})[labels["loader"], labels.get("stage", "")] = sample.value
    return found


def test_what_is_served_is_what_the_loader_says_and_what_the_page_names(small: Corpora) -> None:
    with iostack.metrics.serve(0) as server, make(small, "bad texts counted") as loader:
        list(islice(loader, 30))
        served = _served(server)
        mine = str(loader.number)
        assert tuple(served) == iostack.metrics.NAMES
        assert served["iostack_loader_batches_total"][mine, ""] == 30
        assert served["iostack_loader_samples_total"][mine, ""] == 30 * 12
        assert served["iostack_loader_bad_samples_total"][mine, ""] == loader.bad_samples.count > 0
        assert served["iostack_loader_position"][mine, ""] == loader.position
        waits = [served["iostack_loader_wait_seconds_total"][mine, stage] for stage in STAGES]
        assert sum(waits) == pytest.approx(loader.data_wait_s)
        for stage, figures in loader.stages().items():
            assert served["iostack_loader_stage_samples_total"][mine, stage] >= 0
            assert served["iostack_loader_stage_seconds_total"][mine, stage] <= figures.busy_s
    page = pages.section(pages.read_page("metrics.md"), "Prometheus")
    named = {line.split("`")[1].partition("{")[0] for line in page.splitlines() if line.startswith("| `iostack_")}
    assert named == set(iostack.metrics.NAMES)


def test_counters_never_fall_while_they_are_read_in_the_middle_of_batches(small: Corpora) -> None:
    collector = iostack.metrics.LoaderCollector()
    before: dict[tuple[str, ...], float] = {}
    with make(small, "texts counted") as loader:
        for _ in islice(loader, 50):
            now = {
                (sample.name, *sample.labels.values()): sample.value
                for family in collector.collect()
                if family.type == "counter"
                for sample in family.samples
                if sample.labels["loader"] == str(loader.number)
            }
            assert all(now[key] >= value for key, value in before.items())
            before = now
    assert before


def test_a_loader_that_is_gone_is_no_longer_told(small: Corpora) -> None:
    registry = CollectorRegistry()
    collector = iostack.metrics.register(registry)
    with make(small, "tokens") as loader:
        next(iter(loader))
        number = str(loader.number)
        assert registry.get_sample_value("iostack_loader_batches_total", {"loader": number}) == 1
    del loader
    gc.collect()
    assert registry.get_sample_value("iostack_loader_batches_total", {"loader": number}) is None
    registry.unregister(collector)


def test_closing_frees_the_port_and_ends_the_thread() -> None:
    before = threading.active_count()
    with iostack.metrics.serve(0) as server:
        port = server.port
        with pytest.raises(UsageError, match=f"metrics cannot be served at 127.0.0.1:{port}"):
            iostack.metrics.serve(port)
    assert threading.active_count() == before
    iostack.metrics.serve(port).close()
