"""Residency: bringing the shards of coming windows into the cache before they are read, within a bound in bytes."""

from __future__ import annotations

import threading
import time as clock
from collections import OrderedDict, deque
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from iostack.corpus.contracts import ShardReader
from iostack.corpus.corpus import Corpus
from iostack.plan.indexed import IndexedPlan

Int64s = NDArray[np.int64]

_FETCH_THREADS = 4
_OPEN_SHARDS = 1024


class Residency:
    """Shards of one corpus for one loader: fetched ahead, opened once, forgotten when many others came since.

    ``want`` never blocks; ``reader`` blocks until the shard is there. Thread-safe. ``lookahead_bytes`` bounds the bytes
    being fetched ahead of need; a shard that is needed now is always fetched.
    """

    def __init__(self, corpus: Corpus, lookahead_bytes: int) -> None:
        self.corpus = corpus
        self.wait_s = 0.0
        self._lookahead_bytes = lookahead_bytes
        self._lock = threading.Lock()
        self._readers: OrderedDict[int, ShardReader] = OrderedDict()
        self._fetches: dict[int, Future[None]] = {}
        self._waiting: deque[int] = deque()
        self._bytes_in_flight = 0
        self._pool: ThreadPoolExecutor | None = None
        self._window_ends: Int64s | None = None

    def want_windows(self, plan: IndexedPlan, lanes: Int64s, times: Int64s) -> None:
        """Start fetching what lanes read now and in their next windows; quick inside windows already wanted."""
        if self._window_ends is None:
            self._window_ends = np.zeros(plan.lanes, np.int64)
        (entering,) = np.nonzero(times >= self._window_ends[lanes])
        for lane, time in zip(lanes[entering].tolist(), times[entering].tolist(), strict=True):
            if time >= self._window_ends[lane]:
                self._window_ends[lane] = end = plan.window_end(lane, time)
                for shard in (*plan.live_shards(lane, time).tolist(), *plan.live_shards(lane, end).tolist()):
                    self.want(shard)

    def want(self, shard: int) -> None:
        """Start fetching a shard, now or as soon as the bound allows."""
        with self._lock:
            if shard in self._readers or shard in self._fetches or self.corpus.is_resident(shard):
                return
            if shard not in self._waiting:
                self._waiting.append(shard)
            self._start_fetches()

    def reader(self, shard: int) -> ShardReader:
        """Return the open shard, waiting for its bytes if need be.

        Raises:
            ShardError, OriginError: it cannot be read.
        """
        reader = self._readers.get(shard)
        if reader is not None:
            return reader
        started = clock.perf_counter()
        with self._lock:
            fetch = self._fetches.get(shard)
        if fetch is not None:
            fetch.result()
        reader = self.corpus.open_shard(shard)
        with self._lock:
            self._readers[shard] = reader
            if len(self._readers) > _OPEN_SHARDS:
                self._readers.popitem(last=False)
            self.wait_s += clock.perf_counter() - started
        return reader

    def close(self) -> None:
        """Stop fetching ahead; waits for the fetches under way."""
        with self._lock:
            self._waiting.clear()
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=True, cancel_futures=True)
        self._readers.clear()

    def _start_fetches(self) -> None:
        while self._waiting:
            shard = self._waiting[0]
            size = int(self.corpus.manifest.bytes[shard])
            if self._fetches and self._bytes_in_flight + size > self._lookahead_bytes:
                return
            self._waiting.popleft()
            if self._pool is None:
                self._pool = ThreadPoolExecutor(_FETCH_THREADS, thread_name_prefix="iostack-fetch")
            self._bytes_in_flight += size
            self._fetches[shard] = self._pool.submit(self._fetch, shard, size)

    def _fetch(self, shard: int, size: int) -> None:
        try:
            self.corpus.fetch_shard(shard)
        finally:
            with self._lock:
                self._bytes_in_flight -= size
                self._fetches.pop(shard, None)
                if self._pool is not None:
                    self._start_fetches()
