"""The metrics file after a kill: cut back to the checkpoint, half a line removed."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iostack.errors import RunError
from trainer.metrics import JsonLines, StepMetrics, digest_hex, metrics_line


@given(written=st.integers(0, 12), kept=st.integers(0, 12), torn=st.integers(0, 40))
def test_a_resumed_file_ends_with_one_whole_line_per_step(tmp_path_factory, written, kept, torn):
    path = tmp_path_factory.mktemp("metrics") / "metrics.jsonl"
    lines = [json.dumps({"step": step, "loss": 1.5}).encode() + b"\n" for step in range(1, written + 2)]
    path.write_bytes(b"".join(lines[:written]) + lines[written][: min(torn, len(lines[written]) - 1)])
    kept = min(kept, written)

    file = JsonLines(path, last_step=kept)
    for step in range(kept + 1, 14):
        file.write({"step": step, "loss": 1.5})
    file.close()

    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == list(range(1, 14))


def test_a_line_that_is_no_metrics_before_the_checkpoint_is_an_error_and_nothing_is_cut(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\nhello\n{"step": 3}\n')

    with pytest.raises(RunError, match="line 2, is not a line of metrics"):
        JsonLines(path, last_step=3)

    assert "hello" in path.read_text()
    JsonLines(path, last_step=1).close()
    assert path.read_text() == '{"step": 1}\n'


@given(st.lists(st.integers(-(2**63), 2**63 - 1)), st.integers(1, 5))
def test_a_digest_does_not_depend_on_how_samples_are_spread(hashes, parts):
    def wrapped(values):
        return (sum(values) + 2**63) % 2**64 - 2**63

    whole = digest_hex(wrapped(hashes))
    assert whole == digest_hex(wrapped([wrapped(hashes[part::parts]) for part in range(parts)]))
    assert len(whole) == 16


def test_figures_that_are_no_numbers_are_null():
    metrics = StepMetrics(1, float("nan"), 1.0, 0.1, 8, 0.5, 0.0, 0, "00", 16.0, 1)
    line = metrics_line(metrics)
    assert json.loads(json.dumps(line, allow_nan=False))["loss"] is None
    assert "mfu" not in line
