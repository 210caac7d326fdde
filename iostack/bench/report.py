"""What ``iostack bench`` found, as plain values: the same for JSON, the table and the picture."""

from __future__ import annotations

import resource
import sys
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from iostack.bench.rounds import Speed
from iostack.bench.verdict import first_epoch_is_slower, judge
from iostack.bench.whole import Simulated, Whole
from iostack.corpus.corpus import Corpus
from iostack.loader.loader import Loader


def report(
    corpus: Corpus, loader: Loader, whole: Whole, alone: Mapping[str, Speed], simulated: Simulated | None
) -> dict[str, Any]:
    """Return all figures, JSON-safe; those that were not measured are None or empty."""
    seq_len = loader.plan.seq_len
    samples_per_s = whole.per_s(whole.samples)
    verdict = judge(whole.wait_s, alone, samples_per_s)
    is_remote = corpus.num_shards > 0 and corpus.origin.local_path(corpus.manifest.path(0)) is None
    return {
        "uri": corpus.uri,
        "format": corpus.format.name,
        "batch_size": loader.batch_size,
        "ranks": loader.ranks,
        "seq_len": seq_len,
        "first_batch_s": round(whole.first_batch_s, 6),
        "steps": whole.steps,
        "wall_s": round(whole.wall_s, 6),
        "cpu_s": round(whole.cpu_s, 6),
        "samples_per_s": round(samples_per_s, 2),
        "tokens_per_s": None if seq_len is None else round(samples_per_s * seq_len, 2),
        "mb_per_s": round(whole.per_s(whole.bytes) / 1e6, 3),
        "wait_s": _rounded(whole.wait_s),
        "wait_shares": _shares(whole.wait_s),
        "busy_s": _rounded(whole.busy_s),
        "alone": {stage: _speed(speed) for stage, speed in alone.items()},
        "held_back_by": verdict.stage if verdict else None,
        "advice": verdict.advice if verdict else None,
        "first_epoch": first_epoch_is_slower(alone, samples_per_s, is_remote=is_remote),
        "simulated": None if simulated is None else _simulated(simulated),
        "bad_samples": loader.bad_samples.count,
        "slow_samples": [
            {"shard": slow.shard, "row": slow.row, "seconds": round(slow.seconds, 6)} for slow in loader.slow_samples()
        ],
        "peak_rss_bytes": _peak_rss_bytes(),
    }


def _speed(speed: Speed) -> dict[str, Any]:
    return {
        "samples_per_s": round(speed.samples_per_s, 2),
        "mb_per_s": round(speed.mb_per_s, 3),
        "wall_s": round(speed.wall_s, 6),
        "cpu_s": round(speed.cpu_s, 6),
        "threads": speed.threads,
    }


def _simulated(simulated: Simulated) -> dict[str, Any]:
    share = simulated.waited_steps / simulated.steps if simulated.steps else 0.0
    facts = asdict(simulated) | {"waited_share": round(share, 4), "wait_share": round(simulated.wait_share, 6)}
    return facts | {"wait_s": _rounded(simulated.wait_s)}


def _shares(seconds: Mapping[str, float]) -> dict[str, float]:
    total = sum(seconds.values())
    return {stage: round(part / total, 4) if total else 0.0 for stage, part in seconds.items()}


def _rounded(seconds: Mapping[str, float]) -> dict[str, float]:
    return {stage: round(part, 6) for stage, part in seconds.items()}


def _peak_rss_bytes() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
