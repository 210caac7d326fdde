"""Checks of transforms: pure functions of a sample, in threads and in worker processes."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from iostack.corpus.contracts import KeyedTransform, Sample, Transform
from iostack.loader.order.named import TransformSpec, find_transforms
from iostack.testing.comparing import same

_THREADS = 4
Call = Callable[[Transform, Sample], Any]


def check_transform(transform: TransformSpec, samples: Sequence[Sample]) -> None:
    """Check that a transform gives the same for the same sample, changes nothing of it, and can be sent to a worker.

    ``transform`` is a name, a table {name = ..., option = ...} or a callable. An exception is as good a result as a sample,
    as long as it is always the same.

    Raises:
        AssertionError: says what differs.
    """
    (found,), _ = find_transforms([transform])
    assert samples, "there are no samples, so nothing was checked"
    calls: list[Call] = [_plain]
    if isinstance(found, KeyedTransform):
        calls += [partial(_with_key, key=key) for key in (0, 1, (1 << 64) - 1)]
    try:
        sent = pickle.loads(pickle.dumps(found))
    except Exception as error:
        raise AssertionError(f"{found!r} cannot be sent to a worker process: {error}") from error
    for call in calls:
        results = [_result(call, found, sample) for sample in samples]
        for number, (sample, result) in enumerate(zip(samples, results)):
            assert isinstance(result, dict | Exception), (
                f"sample {number} becomes {type(result).__name__}, not a sample"
            )
            again = _result(call, found, sample)
            assert same(result, again), f"sample {number} becomes {result!r:.200}, and {again!r:.200} the second time"
            there = _result(call, sent, sample)
            assert same(result, there), f"sample {number} becomes {there!r:.200} after pickling, not {result!r:.200}"
        with ThreadPoolExecutor(_THREADS) as threads:
            together = list(threads.map(partial(_result, call, found), list(samples) * _THREADS))
        for number, result in enumerate(together):
            assert same(result, results[number % len(samples)]), f"sample {number % len(samples)} differs in threads"


def _plain(transform: Transform, sample: Sample) -> Any:
    return transform(sample)


def _with_key(transform: Transform, sample: Sample, *, key: int) -> Any:
    assert isinstance(transform, KeyedTransform)
    return transform.with_key(sample, key)


def _result(call: Call, transform: Transform, sample: Sample) -> Any:
    given = copy.deepcopy(sample)
    try:
        result = call(transform, given)
    except Exception as error:  # noqa: BLE001 - it makes the sample bad, which is a result too
        result = error
    assert same(given, sample), (
        f"the transform changed the sample that it was given: {sample!r:.200} is now {given!r:.200}"
    )
    return result
