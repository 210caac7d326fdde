"""How many bytes a batch holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def batch_bytes(columns: Mapping[str, Any]) -> int:
    """Return the bytes of tensors, and of the arrays, bytes and characters in lists."""
    return sum(_column_bytes(column) for column in columns.values())


def _column_bytes(column: Any) -> int:
    if isinstance(column, list):
        return sum(value.nbytes if hasattr(value, "nbytes") else _length(value) for value in column)
    return int(column.nbytes)


def _length(value: Any) -> int:
    return len(value) if isinstance(value, bytes | str) else 0
