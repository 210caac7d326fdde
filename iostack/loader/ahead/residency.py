"""Residency: bringing the shards of coming windows into the cache before they are read, within a bound in bytes.

wanted ──room within the bound──> fetching ──> here, unread ──reader()──> open
                                  |---- counts as look-ahead ----|
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from iostack.corpus.contracts import Column, Sample, ShardReader
from iostack.corpus.corpus import Corpus
from iostack.errors import IostackError, PluginError
from iostack.forks import renew_in_children
from iostack.loader.ahead.in_flight import InFlight
from iostack.loader.metering.meter import Meter, Pending
from iostack.loader.threads import Threads, patience_s
from iostack.plan.indexed import IndexedPlan
from iostack.stages import stage, tally_here

Int64s = NDArray[np.int64]
ReadRows = Callable[[Sequence[int]], Sequence[Sample | Exception]]

_FETCH_THREADS = 4
_OPEN_SHARDS = 1024


class Residency:
    """Shards of one corpus for one loader: fetched ahead, opened once, forgotten when many others came since.

    ``want_windows`` never waits and belongs to the consumer's thread; ``reader`` waits until the shard is there, in any
    thread. ``lookahead_bytes`` bounds the bytes of shards that are fetched, or being fetched, and that nobody has read
    yet, where it holds one shard at least; a shard that is needed now is always fetched. ``in_flight`` counts both, for all
    sources of a loader.
    """

    def __init__(self, corpus: Corpus, lookahead_bytes: int, meter: Meter, in_flight: InFlight) -> None:
        self.corpus = corpus
        self._meter = meter
        self._in_flight = in_flight
        self._lookahead_bytes = lookahead_bytes
        self._lock = threading.Lock()
        renew_in_children(self)
        self._readers: OrderedDict[int, ShardReader] = OrderedDict()
        self._waiting: OrderedDict[int, None] = OrderedDict()
        self._fetches: dict[int, Pending[None]] = {}
        self._unread: dict[int, int] = {}
        self._unread_bytes = 0
        self._threads = Threads(_FETCH_THREADS, "fetch")
        self._stopped = False
        self._window_ends: Int64s | None = None
        self._wanted_by_lane: dict[int, set[int]] = {}

    def want_windows(self, plan: IndexedPlan, lanes: Int64s, times: Int64s) -> None:
        """Start fetching what lanes read now, then what their next windows read; quick inside windows already wanted."""
        if self._window_ends is None:
            self._window_ends = np.zeros(plan.lanes, np.int64)
        (entering,) = np.nonzero(times >= self._window_ends[lanes])
        if not len(entering):
            return
        now: list[int] = []
        later: list[int] = []
        for lane, time in zip(lanes[entering].tolist(), times[entering].tolist(), strict=True):
            if time < self._window_ends[lane]:
                continue
            self._window_ends[lane] = end = plan.window_end(lane, time)
            now += (current := plan.live_shards(lane, time).tolist())
            later += (coming := plan.live_shards(lane, end).tolist())
            passed = self._wanted_by_lane.get(lane, set())
            self._wanted_by_lane[lane] = {*current, *coming}
            self._forget(passed - self._wanted_by_lane[lane])
        self._want(dict.fromkeys(now + later))

    def reader(self, shard: int) -> ShardReader:
        """Return the open shard, waiting for its bytes if need be.

        Raises:
            ShardError, OriginError: it cannot be read. CorpusError: it did not come in time.
        """
        reader = self._readers.get(shard)
        if reader is not None:
            return reader
        with stage("read", label=lambda: self.corpus.shard_name(shard)):
            with self._lock:
                fetch = self._fetches.get(shard)
                is_fetched = fetch is not None or shard in self._unread
            if fetch is not None:
                deadline_s = patience_s(int(self.corpus.manifest.bytes[shard]))
                fetch.result(deadline_s=deadline_s, awaited=lambda: self.corpus.shard_name(shard))
            brought = tally.brought if (tally := tally_here()) else 0
            needed_bytes = 0 if self.corpus.is_resident(shard) else int(self.corpus.manifest.bytes[shard])
            with self._in_flight.holding(needed_bytes):
                reader = self.corpus.open_shard(shard)
            self._meter.opened(from_cache=not is_fetched and (tally is None or tally.brought == brought))
        with self._lock:
            self._readers[shard] = reader
            if len(self._readers) > _OPEN_SHARDS:
                self._readers.popitem(last=False)
            self._waiting.pop(shard, None)
            self._release(shard)
            self._start_fetches()
        return reader

    def stored_bytes(self, shard: int, num_rows: int) -> int:
        """Return what so many rows of an open shard take in it on average."""
        reader = self._readers.get(shard)
        samples = reader.counts.samples if reader is not None else 0
        return int(self.corpus.manifest.bytes[shard]) * num_rows // samples if samples else 0

    def shard_bytes(self, shards: Int64s) -> int:
        """Return the bytes of some shards, repeated or not."""
        return int(self.corpus.manifest.bytes[np.unique(shards)].sum())

    def are_open(self, shards: Int64s) -> bool:
        """Return whether ``reader`` would return each of some shards, repeated or not, at once."""
        return self._readers.keys() >= set(shards.tolist())

    def read_rows(
        self, shard: int, rows: list[int], read_by: Callable[[ReadRows], Sequence[Sample | Exception]] | None = None
    ) -> Sequence[Sample | Exception]:
        """Return the samples of some rows of a shard, waiting for its bytes if need be; thread-safe.

        ``read_by`` calls the reader in a way of its own.

        Raises:
            IostackError: as ``reader`` does. PluginError: the reader failed in its own way.
        """
        reader = self.reader(shard)
        try:
            with self._reading(shard, len(rows)):
                return reader.read(rows) if read_by is None else read_by(reader.read)
        except IostackError:
            raise
        except Exception as error:
            raise self._foreign(error, shard, rows) from error

    def read_columns(self, shard: int, rows: Int64s) -> Mapping[str, Column] | None:
        """Return some rows of a shard as columns, as ``read_rows`` does; None where its reader cannot."""
        read_columns = getattr(self.reader(shard), "read_columns", None)  # isinstance of a protocol takes 10 us
        if read_columns is None:
            return None
        try:
            with self._reading(shard, len(rows)):
                columns: Mapping[str, Column] | None = read_columns(rows)
                if columns and (lengths := set(map(len, columns.values()))) != {len(rows)}:
                    raise ValueError(f"columns of {sorted(lengths)} rows came")
                return columns
        except IostackError:
            raise
        except Exception as error:
            raise self._foreign(error, shard, rows.tolist()) from error

    def _reading(self, shard: int, num_rows: int) -> stage:
        label = partial(self.corpus.shard_name, shard)
        return stage("read", samples=num_rows, num_bytes=self.stored_bytes(shard, num_rows), label=label)

    def _foreign(self, error: Exception, shard: int, rows: list[int]) -> PluginError:
        """Return what an error that a reader must not raise becomes."""
        name = self.corpus.shard_name(shard)
        return PluginError(f"the reader of {name} failed on rows {rows}: {type(error).__name__}: {error}")

    def renew_after_fork(self) -> None:
        """Be able to stop in a forked child, whose threads are gone."""
        self._lock = threading.Lock()

    def stop(self) -> None:
        """Stop fetching ahead, and wait for the fetches under way; the next ``want_windows`` begins anew."""
        with self._lock:
            self._stopped = True
            self._waiting.clear()
        self._threads.close()
        self._fetches.clear()
        self._unread.clear()
        self._hold(-self._unread_bytes)
        self._window_ends = None
        self._wanted_by_lane.clear()

    def close(self) -> None:
        """Stop, and let go of the open shards."""
        self.stop()
        self._readers.clear()

    def _want(self, shards: Iterable[int]) -> None:
        with self._lock:
            self._stopped = False
            for shard in shards:
                if shard not in self._readers and shard not in self._unread:
                    self._waiting[shard] = None
            self._start_fetches()

    def _forget(self, shards: Iterable[int]) -> None:
        """Count shards that a lane has passed without reading them as look-ahead no longer."""
        with self._lock:
            for shard in shards:
                self._waiting.pop(shard, None)
                self._release(shard)

    def _release(self, shard: int) -> None:
        self._hold(-self._unread.pop(shard, 0))

    def _hold(self, num_bytes: int) -> None:
        self._unread_bytes += num_bytes
        self._in_flight.hold(num_bytes)
        self._meter.hold(num_bytes)

    def _start_fetches(self) -> None:
        """Begin with the shards that wait, as far as the bound allows; the caller holds the lock."""
        while self._waiting and not self._stopped:
            shard = next(iter(self._waiting))
            size = int(self.corpus.manifest.bytes[shard])
            has_room = self._unread_bytes + size <= self._lookahead_bytes and self._in_flight.has_room(size)
            if self._unread and not has_room:
                return
            del self._waiting[shard]
            if shard not in self._readers and not self.corpus.is_resident(shard):
                self._unread[shard] = size
                self._hold(size)
                self._fetches[shard] = self._meter.submit(
                    self._threads, "origin", self._fetch, shard, label=partial(self.corpus.shard_name, shard)
                )

    def _fetch(self, shard: int) -> None:
        """Fetch one shard in a pool thread; if that fails, who needs the shard meets the error."""
        try:
            self.corpus.fetch_shard(shard)
        except BaseException:
            with self._lock:
                self._release(shard)
            raise
        finally:
            with self._lock:
                self._fetches.pop(shard, None)
