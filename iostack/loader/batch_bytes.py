"""How many bytes a batch holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def batch_bytes(columns: Mapping[str, Any]) -> int:
    """Return the bytes of tensors, and of the arrays, bytes and characters in lists."""
    return sum(_column_bytes(column) for column in columns.values())


def _column_bytes(column: Any) -> int:
    if isinstance(column, list):
        return sum(len(value) if isinstance(value, (str, bytes)) else getattr(value, "nbytes", 0) for value in column)
    return int(column.nbytes)
