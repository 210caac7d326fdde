"""The trace of a loader: valid however it ends, bounded, with threads as tracks and stages as spans."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import defaultdict
from itertools import islice
from pathlib import Path
from typing import Any

import corpora
import pytest

import iostack
from iostack.errors import UsageError
from iostack.loader.metering import trace as trace_module
from iostack.loader.metering.trace import Trace

from .pipelines import Corpora, make


def _events(path: Path) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = json.loads(path.read_text())
    return events


@pytest.mark.parametrize("pipeline", ["tokens", "texts transformed", "rows counted transformed", "mix of three"])
def test_spans_of_a_track_lie_inside_each_other_or_apart(
    small: Corpora, tmp_path: Path, pipeline: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trace_module, "SHORTEST_SPAN_S", 0.0)
    with make(small, pipeline, trace=tmp_path / "trace.json") as loader:
        list(islice(loader, 20))
    events = _events(tmp_path / "trace.json")
    tracks = {event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"}
    assert "MainThread" in tracks.values()
    spans = defaultdict(list)
    for event in events:
        assert event["ph"] in {"M", "X", "C"}
        if event["ph"] == "X":
            assert event["dur"] >= 0 <= event["ts"]
            spans[event["tid"]].append((event["ts"], event["ts"] + event["dur"]))
    assert set(spans) <= set(tracks)
    for track in spans.values():
        around: list[float] = []
        for started, ended in sorted(track, key=lambda span: (span[0], -span[1])):
            while around and around[-1] <= started + 0.01:
                around.pop()
            assert not around or ended <= around[-1] + 0.01
            around.append(ended)
    names = {event["name"] for event in events if event["ph"] == "X"}
    assert {"assemble", "consumer"} <= names
    if pipeline != "tokens":
        assert {"read", "decode", "wait"} <= names
        assert any("of" in event["args"] for event in events if event["name"] == "read")


def test_look_ahead_is_a_counter_that_comes_back_to_nothing(tmp_path: Path) -> None:
    trace = Trace(tmp_path / "trace.json")
    trace.counter("look-ahead bytes", 5)
    trace.counter("look-ahead bytes", 0)
    trace.close()
    trace.counter("look-ahead bytes", 7)
    counted = [event["args"] for event in _events(trace.path) if event["ph"] == "C"]
    assert counted == [{"look-ahead bytes": 5}, {"look-ahead bytes": 0}]


def test_a_trace_takes_no_more_events_than_its_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace_module, "MOST_EVENTS", 50)
    monkeypatch.setattr(trace_module, "_WRITE_EVENTS", 7)
    trace = Trace(tmp_path / "trace.json")
    for number in range(200):
        trace.span("read", number, number + 1, f"shard {number}")
        assert len(trace._events) < 7
    trace.close()
    events = _events(trace.path)
    assert [event["args"]["of"] for event in events if event["ph"] == "X"] == [f"shard {each}" for each in range(50)]
    assert events[-1]["name"] == "trace_full"


FAILING = """
import signal, sys, iostack
def fail(sample):
    if sample["n"] == 30:
        {how}
    return sample
corpus = iostack.open_corpus(sys.argv[1])
for batch in iostack.Loader(corpus, batch_size=4, lanes=1, transforms=[fail], trace=sys.argv[2]):
    pass
"""


@pytest.mark.parametrize("how", ["raise OSError(5, 'broken')", "signal.raise_signal(signal.SIGINT)"])
def test_a_trace_is_whole_where_an_error_or_an_interrupt_ends_the_program(tmp_path: Path, how: str) -> None:
    corpora.write_jsonl(tmp_path / "c" / "0.jsonl", corpora.texts(60))
    command = [sys.executable, "-c", FAILING.format(how=how), str(tmp_path / "c"), str(tmp_path / "trace.json")]
    ended = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert ended.returncode != 0
    assert "broken" in ended.stderr or "KeyboardInterrupt" in ended.stderr
    assert {"read", "assemble"} <= {event["name"] for event in _events(tmp_path / "trace.json")}


def test_a_trace_that_cannot_be_written_is_refused_at_once(small: Corpora, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nowhere/trace\.json cannot be written: No such file"):
        make(small, "tokens", trace=tmp_path / "nowhere" / "trace.json")


def test_a_loader_that_is_never_closed_leaves_a_whole_trace(small: Corpora, tmp_path: Path) -> None:
    loader = make(small, "tokens", trace=tmp_path / "trace.json")
    list(islice(loader, 3))
    del loader
    assert isinstance(_events(tmp_path / "trace.json"), list)


def test_without_a_trace_nothing_is_written(small: Corpora, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with make(small, "texts") as loader:
        list(islice(loader, 3))
    assert loader.meter.sink is None
    assert list(tmp_path.iterdir()) == []
    assert isinstance(loader, iostack.Loader)
