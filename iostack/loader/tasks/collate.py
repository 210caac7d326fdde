"""From samples to the columns of a batch. Imports no torch: worker processes start without it."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from iostack.batch_memory import Places
from iostack.corpus.contracts import Column, Sample

Columns = dict[str, Any]
"""Column -> all its values: an array where they are numbers or alike, else a list."""

_DTYPES: dict[type, type[np.generic]] = {bool: np.bool_, int: np.int64, float: np.float64}


def collate(samples: Sequence[Sample], places: Places | None = None) -> Columns:
    """Return one batch of columns: arrays where all values are numbers, or arrays of one shape and dtype, else lists.

    Tensors are stacked to a tensor, arrays too unless transforms made them in the batch's ``places``. A column that a sample
    lacks holds None in its place.
    """
    names = samples[0]
    num_names = len(names)
    with suppress(KeyError):  # a sample of as many names, of which one is another
        if all(len(sample) == num_names for sample in samples):
            return {name: _collate_column([sample[name] for sample in samples], places) for name in names}
    names = dict.fromkeys(name for sample in samples for name in sample)
    return {name: _collate_column([sample.get(name) for sample in samples], places) for name in names}


def collate_columns(columns: Mapping[str, Column], rows: slice) -> Columns:
    """Return one batch out of the columns of several, as ``collate`` of its samples would."""
    return {
        name: _collate_column(column[rows]) if isinstance(column, list) else column[rows]
        for name, column in columns.items()
    }


def as_tensors(columns: Mapping[str, Any]) -> Columns:
    """Return the columns with their arrays as tensors over the same memory."""
    import torch

    return {
        name: torch.from_numpy(column) if isinstance(column, np.ndarray) else column for name, column in columns.items()
    }


def is_tensor(value: Any) -> bool:
    """Return whether a value is a torch tensor; nobody has one before torch is imported."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _collate_column(values: list[Any], places: Places | None = None) -> Any:
    first = values[0]
    if is_tensor(first):
        same = all(is_tensor(value) and (value.shape, value.dtype) == (first.shape, first.dtype) for value in values)
        return sys.modules["torch"].stack(values) if same else values
    if isinstance(first, np.ndarray):
        same = first.dtype.kind in "biuf" and all(
            isinstance(value, np.ndarray) and (value.shape, value.dtype) == (first.shape, first.dtype)
            for value in values
        )
        return _as_one(values, places) if same else values
    dtype = _DTYPES.get(type(first))
    if dtype is None or len(set(map(type, values))) > 1:
        return values
    try:
        return np.array(values, dtype)
    except OverflowError:  # integers beyond 64 bits
        return values


def _as_one(arrays: list[NDArray[Any]], places: Places | None) -> NDArray[Any]:
    """Return arrays of one shape and dtype as one, each in the order of axes that the first has in memory.

    So images decoded as [height, width, channels] and seen as [channels, height, width] are copied as they lie, which makes
    the batch ``torch.channels_last``; turning them around costs half as much as decoding them.
    """
    first = arrays[0]
    if first.flags.c_contiguous:
        return _stacked(arrays, places)
    axes = sorted(range(first.ndim), key=lambda axis: -abs(first.strides[axis]))
    stacked = _stacked([array.transpose(axes) for array in arrays], places)
    return stacked.transpose(0, *(1 + axes.index(axis) for axis in range(first.ndim)))


def _stacked(arrays: list[NDArray[Any]], places: Places | None) -> NDArray[Any]:
    whole = None if places is None else places.whole(arrays)
    return np.stack(arrays) if whole is None else whole
