"""Sizes in bytes as people write them: "256 MiB", "1.5GB", 4096."""

from __future__ import annotations

import re
from decimal import Decimal

from iostack.errors import SettingsError

_UNITS = {"": 1, "b": 1, "bytes": 1} | {
    f"{prefix}{suffix}": base**power
    for power, prefix in enumerate("kmgt", start=1)
    for suffix, base in (("ib", 1024), ("b", 1000), ("", 1024))
}


def parse_bytes(size: float | str) -> int:
    """Return a size in bytes; a bare number counts bytes, KiB is 1024 and KB 1000.

    Raises:
        SettingsError: it is no size, or negative.
    """
    if isinstance(size, float) and size.is_integer():
        size = int(size)
    if isinstance(size, int):
        if size < 0:
            raise SettingsError(f"{size} is not a size: it is negative")
        return size
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", str(size), re.ASCII)
    if match is None or match[2].lower() not in _UNITS:
        raise SettingsError(f"{size!r} is not a size", hint='write it like "256 MiB", "1.5 GB" or 4096')
    return int(Decimal(match[1]) * _UNITS[match[2].lower()])


def format_bytes(size: float) -> str:
    """Return a size for people: "1.5 GiB"."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
