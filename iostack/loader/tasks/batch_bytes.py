"""How many bytes a batch holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_HAVE_LENGTHS = frozenset((str, bytes))


def batch_bytes(columns: Mapping[str, Any]) -> int:
    """Return the bytes of tensors, and of the arrays, bytes and characters in lists."""
    return sum(_column_bytes(column) for column in columns.values())


def _column_bytes(column: Any) -> int:
    if not isinstance(column, list):
        return int(column.nbytes)
    if _HAVE_LENGTHS.issuperset(map(type, column)):  # a tenth of the time of asking each value what it is
        return sum(map(len, column))
    return sum(len(value) if isinstance(value, (str, bytes)) else getattr(value, "nbytes", 0) for value in column)
