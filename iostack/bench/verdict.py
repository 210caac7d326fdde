"""Which stage holds a loader back, and what to do about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from iostack.bench.rounds import Speed

_NEVER_S = 1e-6
_ADVICE = {
    "origin": "the storage is the limit: more bytes a second from it, a cache folder that keeps what was fetched, or "
    "shards that are better compressed",
    "cache": "unpacking is the limit: zstd instead of gzip or bz2, uncompressed shards, or a cache folder on NVMe",
    "read": "reading rows is the limit, and threads take turns in it: keep fewer columns (--columns), or index the corpus (iostack index)",
    "decode": "decoding is the limit: raise --threads; where transforms are Python, use worker processes (data.workers); "
    "or store what they make",
    "assemble": "planning and gathering batches is the limit: a larger batch (--batch-size), or fewer columns; "
    "sequences of tokens are near the speed of the memory here",
    "pin": "copying to pinned memory is the limit: fewer or smaller columns",
    "device": "copying to the device is the limit: fewer or smaller columns, such as uint8 images",
}


_MUCH_FASTER_ALONE = 4.0
_HANDING_OVER = (
    "alone, {stage} is {ratio:.0f} times as fast as the whole: what costs is planning and handing over each batch, and threads"
    " that take turns in Python; try a larger --batch-size, fewer --threads, or worker processes (data.workers)"
)


@dataclass(frozen=True)
class Verdict:
    """The stage that holds the loader back, its share of the waiting, and what to change."""

    stage: str
    share: float
    advice: str


def judge(wait_s: Mapping[str, float], alone: Mapping[str, Speed], whole_per_s: float) -> Verdict | None:
    """Return the stage that was waited for most; None where there was no waiting to speak of."""
    total_s = sum(wait_s.values())
    if total_s < _NEVER_S:
        return None
    stage = max(wait_s, key=wait_s.__getitem__)
    ratio = alone[stage].samples_per_s / whole_per_s if stage in alone and whole_per_s else 0.0
    if ratio > _MUCH_FASTER_ALONE:
        return Verdict(stage, wait_s[stage] / total_s, _HANDING_OVER.format(stage=stage, ratio=ratio))
    return Verdict(stage, wait_s[stage] / total_s, _ADVICE[stage])


def first_epoch_is_slower(alone: Mapping[str, Speed], whole_per_s: float, *, is_remote: bool) -> str | None:
    """Return a sentence where shards that are not cached yet come slower than batches can be made."""
    coming = {stage: alone[stage].samples_per_s for stage in ("origin", "cache") if stage in alone}
    if not is_remote or not coming or min(coming.values()) >= whole_per_s:
        return None
    stage = min(coming, key=coming.__getitem__)
    return f"until all shards are cached, {stage} allows {coming[stage]:,.0f} samples/s"
