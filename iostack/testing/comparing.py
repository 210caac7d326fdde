"""Whether two samples are the same: values and types, arrays element by element, NaN equal to itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np


def same(left: Any, right: Any) -> bool:
    """Return whether two values of samples are the same."""
    if isinstance(left, Exception) or isinstance(right, Exception):
        return type(left) is type(right) and str(left) == str(right)
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        return list(left) == list(right) and all(same(left[name], right[name]) for name in left)
    if type(left) is not type(right):
        return False
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, np.ndarray):
        return (left.dtype, left.shape, left.tobytes()) == (right.dtype, right.shape, right.tobytes())
    if hasattr(left, "numpy"):  # a tensor
        return bool(same(left.numpy(), right.numpy()))
    return bool(left == right) or repr(left) == repr(right)  # two NaN are equal in their text alone
