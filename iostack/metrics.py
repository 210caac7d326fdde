"""Figures of the loaders of this process for Prometheus: read when they are asked for, so they cost nothing per batch.

    with iostack.metrics.serve(9400):       # http://127.0.0.1:9400/metrics
        for batch in loader: ...

Nothing is served, and no port is open, unless ``serve`` is called; ``register`` adds the figures to what a program serves itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple, Self

from prometheus_client import REGISTRY, CollectorRegistry, start_http_server
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from iostack.errors import UsageError
from iostack.loader.live import live_loaders

if TYPE_CHECKING:
    from iostack.loader.loader import Loader
    from iostack.loader.metering.meter import StageFigures


class _Figure(NamedTuple):
    name: str
    help: str
    read: Callable[[Loader], float]


class _StageFigure(NamedTuple):
    name: str
    help: str
    read: Callable[[StageFigures], float]


_COUNTERS = (
    _Figure("iostack_loader_batches", "Batches handed out.", lambda loader: loader.meter.batches),
    _Figure("iostack_loader_samples", "Samples handed out, padding included.", lambda loader: loader.num_samples),
    _Figure("iostack_loader_bad_samples", "Different samples that were bad.", lambda loader: loader.bad_samples.count),
    _Figure("iostack_loader_cache_hits", "Shards opened that were here already.", lambda each: each.meter.cache_hits),
    _Figure("iostack_loader_cache_misses", "Objects brought to the cache.", lambda each: each.meter.cache_misses),
)
_STAGE_COUNTERS = (
    _StageFigure("iostack_loader_stage_seconds", "Seconds of work, of all threads.", lambda figures: figures.busy_s),
    _StageFigure("iostack_loader_stage_samples", "Samples worked on.", lambda figures: figures.samples),
    _StageFigure("iostack_loader_stage_bytes", "Bytes worked on.", lambda figures: figures.bytes),
    _StageFigure("iostack_loader_wait_seconds", "Seconds that the consumer waited.", lambda figures: figures.wait_s),
)
_GAUGES = (
    _Figure("iostack_loader_position", "Position in the sample stream.", lambda loader: loader.position),
    _Figure(
        "iostack_loader_lookahead_bytes",
        "Bytes of shards fetched, or being fetched, and not read yet.",
        lambda loader: loader.meter.lookahead_bytes,
    ),
)
NAMES = tuple(f"{figure.name}_total" for figure in (*_COUNTERS, *_STAGE_COUNTERS)) + tuple(
    figure.name for figure in _GAUGES
)
"""What is exported; all carry the label ``loader``, the number of the loader in its process, and some ``stage``."""


class LoaderCollector(Collector):
    """The figures of all loaders of this process that have been iterated and are still there. Thread-safe."""

    def collect(self) -> Iterator[Metric]:
        """Yield the figures as they are now."""
        loaders = live_loaders()
        for figure in _COUNTERS:
            counter = CounterMetricFamily(figure.name, figure.help, labels=["loader"])
            for loader in loaders:
                counter.add_metric([str(loader.number)], figure.read(loader))
            yield counter
        stages = [(str(loader.number), loader.stages()) for loader in loaders]
        for of_stage in _STAGE_COUNTERS:
            counter = CounterMetricFamily(of_stage.name, of_stage.help, labels=["loader", "stage"])
            for number, figures in stages:
                for stage in figures:
                    counter.add_metric([number, stage], of_stage.read(figures[stage]))
            yield counter
        for figure in _GAUGES:
            gauge = GaugeMetricFamily(figure.name, figure.help, labels=["loader"])
            for loader in loaders:
                gauge.add_metric([str(loader.number)], figure.read(loader))
            yield gauge


def register(registry: CollectorRegistry = REGISTRY) -> LoaderCollector:
    """Add the figures to what a program serves with ``prometheus_client``; return what ``registry.unregister`` takes."""
    collector = LoaderCollector()
    registry.register(collector)
    return collector


class Server:
    """Serves the figures over HTTP until ``close``; see ``serve``."""

    def __init__(self, port: int, address: str) -> None:
        registry = CollectorRegistry()
        register(registry)
        try:
            self._server, self._thread = start_http_server(port, address, registry)
        except (OSError, OverflowError) as error:
            raise UsageError(
                f"metrics cannot be served at {address}:{port}: {error}",
                hint="choose another port: metrics.port, in Python serve(port)",
            ) from error
        self.port: int = self._server.server_port
        """The port, chosen by the system where 0 was asked for."""

    def close(self) -> None:
        """Stop serving and free the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=10)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def serve(port: int, *, address: str = "127.0.0.1") -> Server:
    """Serve the figures at http://ADDRESS:PORT/metrics from a thread; ``0.0.0.0`` lets other machines read them.

    Raises:
        UsageError: the port is taken, or is none.
    """
    return Server(port, address)
