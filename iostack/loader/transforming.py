"""Apply transforms to one sample: what they raise, or return that is no sample, makes it a bad one."""

from __future__ import annotations

from collections.abc import Sequence

from iostack.corpus.contracts import Sample, Transform
from iostack.errors import SampleError


def transformed(sample: Sample | Exception, transforms: Sequence[Transform]) -> Sample | Exception:
    """Return the sample that the transforms make of ``sample``, or the error that makes it bad."""
    if isinstance(sample, Exception):
        return sample
    try:
        for transform in transforms:
            sample = transform(sample)
            if not isinstance(sample, dict):
                return SampleError(f"a transform returned {type(sample).__name__}, not a sample")
    except Exception as error:  # noqa: BLE001 - whatever a transform raises makes its sample bad
        return error
    return sample
