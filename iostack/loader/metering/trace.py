"""The pipeline as a timeline: a trace in Chrome's event format, which Perfetto (https://ui.perfetto.dev) opens.

Threads are tracks and stages are spans. Events go to the file as they come, so that memory stays bounded and even the file of
a killed process can be opened; after ``MOST_EVENTS`` no more are taken, so the file stays below some 100 MB.
"""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from typing import Any

from iostack import logs
from iostack.errors import UsageError
from iostack.stages import Label

logger = logs.logger("iostack.loader")

MOST_EVENTS = 500_000
SHORTEST_SPAN_S = 20e-6
"""Shorter spans are left out: nobody sees them, and a fast consumer makes hundreds of thousands a second."""
_WRITE_EVENTS = 1000
_MICRO = 1e6


class Trace:
    """Takes spans and counters, and writes them to ``path``; thread-safe. ``name`` is that of the process in the picture.

    Raises:
        UsageError: the file cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str], *, name: str = "iostack") -> None:
        self.path = Path(path)
        try:
            self._file = self.path.open("w", encoding="utf-8")
        except OSError as error:
            raise UsageError(
                f"the trace {self.path} cannot be written: {error.strerror}", hint="name a file in a folder that exists"
            ) from error
        self._lock = threading.Lock()
        self._process = os.getpid()
        self._zero_s = time.perf_counter()
        self._tracks: set[int] = set()
        self._events: list[str] = []
        self._num_events = 0
        self._is_open = True
        self._file.write("[\n")
        self._meta("process_name", 0, name)

    def span(self, name: str, started: float, ended: float, label: Label | None) -> None:
        """Take what this thread did between two readings of ``time.perf_counter``."""
        if ended - started < SHORTEST_SPAN_S or not self._is_open:
            return
        event = self._event("X", name, started)
        event["dur"] = round((ended - started) * _MICRO, 3)
        if label is not None:
            event["args"] = {"of": label() if callable(label) else label}
        self._take(event)

    def counter(self, name: str, value: int) -> None:
        """Take a figure as it is now."""
        if self._is_open:
            self._take({**self._event("C", name, time.perf_counter()), "args": {name: value}})

    def close(self) -> None:
        """Finish the file; what comes later is dropped."""
        with self._lock:
            if self._is_open:
                self._is_open = False
                if self._num_events >= MOST_EVENTS:
                    self._events.append(json.dumps({"ph": "M", "name": "trace_full", "pid": self._process, "tid": 0}))
                self._write(end="\n]\n")
                self._file.close()

    def __del__(self) -> None:
        if hasattr(self, "_events"):
            self.close()

    def _event(self, kind: str, name: str, at: float) -> dict[str, Any]:
        return {
            "ph": kind,
            "name": name,
            "cat": "iostack",
            "pid": self._process,
            "tid": threading.get_native_id(),
            "ts": round((at - self._zero_s) * _MICRO, 3),
        }

    def _meta(self, name: str, track: int, value: str) -> None:
        event = {"ph": "M", "name": name, "pid": self._process, "tid": track, "args": {"name": value}}
        self._events.append(json.dumps(event))

    def _take(self, event: dict[str, Any]) -> None:
        with self._lock:
            if not self._is_open or self._num_events >= MOST_EVENTS:
                return
            if event["tid"] not in self._tracks:
                self._tracks.add(event["tid"])
                self._meta("thread_name", event["tid"], threading.current_thread().name)
            self._events.append(json.dumps(event))
            self._num_events += 1
            if len(self._events) >= _WRITE_EVENTS:
                self._write(end=",\n")

    def _write(self, *, end: str) -> None:
        """Write what has gathered; the caller holds the lock. A disk that is full ends the trace, not the loading."""
        try:
            self._file.write(",\n".join(self._events) + end)
            self._file.flush()
        except OSError as error:
            self._is_open = False
            logger.warning("the trace %s ends here: %s", self.path, error.strerror)
        self._events.clear()
