"""What a run tells about its loader: the stage that it waits for, a timeline, figures for Prometheus."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import runs

from trainer.observing import Waits, trace_path
from trainer.settings import MetricsSettings


def test_the_slowest_stage_is_that_of_the_time_since_the_last_look() -> None:
    waits = Waits()
    assert waits.slowest_since({"origin": 5.0, "decode": 1.0}) == "origin"
    assert waits.slowest_since({"origin": 5.5, "decode": 2.0}) == "decode"
    assert waits.slowest_since({"origin": 5.5, "decode": 2.0}) is None


@pytest.mark.parametrize(
    ("trace", "rank", "expected"),
    [("", 0, None), ("a/t.json", 0, Path("a/t.json")), ("a/t.json", 3, Path("a/t-3.json"))],
)
def test_every_rank_has_a_timeline_of_its_own(trace: str, rank: int, expected: Path | None) -> None:
    assert trace_path(MetricsSettings(trace=trace), rank) == expected


def test_a_metrics_port_that_is_taken_is_told_before_anything_is_opened_or_built(run: runs.Run, tmp_path: Path) -> None:
    run.corpus = tmp_path / "nowhere"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = run.train("-s", f"metrics.port={port}")
    assert ended.code == 2
    [error] = ended.errors
    assert error.startswith(f"error: metrics cannot be served at 127.0.0.1:{port}: ")
    assert not (run.folder / "checkpoints").exists()
