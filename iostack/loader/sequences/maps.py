"""The mapped shards of a source, and rows gathered out of many of them at once.

    |-- shard 4 --|      |-- shard 0 --|  |---- shard 7 ----|      memory, as the system has mapped it
    [row 0 [row 1 [row 2 ...                                       a row begins at every byte

To numpy all memory from the first map to the last is one array of overlapping rows, so that any rows of any shards are one
lookup in it: 4.6 us for 8 rows of 2049 uint16, where a loop over the rows takes 7.9.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from iostack.loader.order.schedule import Int64s

_OPEN_MAPS = 1024
_STAGING_BYTES = 256 << 10
_MOST_ARRAY_BYTES = (1 << 63) - 1
"""Of an array, as numpy counts them: overlapping rows as if they were apart."""

Tokens = NDArray[np.integer[Any]]


class Maps:
    """Shards by number, opened with ``open_map`` when they are first asked for, and rows of ``width`` tokens out of them.

    What ``open_map`` returns stays where it is as long as it is held. Where too many are open, all are forgotten. Belongs to
    one thread.
    """

    def __init__(self, open_map: Callable[[int], Tokens], num_shards: int, width: int) -> None:
        self._open_map = open_map
        self._width = width
        self._maps: dict[int, Tokens] = {}
        self._addresses = np.zeros(num_shards, np.int64)
        """Where the map of each shard begins; 0 where it is not open."""
        self._first_address = 0
        self._rows: Tokens | None = None

    def __getitem__(self, shard: int) -> Tokens:
        """Return the tokens of a shard."""
        self._open(np.asarray([shard], np.int64))
        return self._maps[shard]

    def gather(self, shards: Int64s, starts: Int64s, places: Int64s, out: NDArray[np.int64]) -> None:
        """Fill rows ``places`` of ``out``, which ascend: each from token ``starts`` of its shard on, inside the shard."""
        self._open(shards)
        rows = self._rows
        if rows is None:
            for place, shard, start in zip(places.tolist(), shards.tolist(), starts.tolist(), strict=True):
                out[place] = self._maps[shard][start : start + self._width]
            return
        begins = self._addresses[shards] - self._first_address
        begins += starts * rows.itemsize
        # Copying rows as they are, and widening many in the processor's cache, costs less than widening each.
        step = max(1, _STAGING_BYTES // (self._width * rows.itemsize))
        fills_all = len(places) == len(out)
        for first in range(0, len(places), step):
            part = slice(first, first + step)
            out[part if fills_all else places[part]] = rows[begins[part]]

    def clear(self) -> None:
        """Let go of the maps."""
        self._maps.clear()
        self._addresses[:] = 0
        self._first_address, self._rows = 0, None

    def _open(self, shards: Int64s) -> None:
        if self._addresses[shards].all():
            return
        if len(self._maps) >= _OPEN_MAPS:
            self.clear()
        try:
            # Not np.unique, for which numpy imports numpy.ma.
            for shard in sorted(set(shards[self._addresses[shards] == 0].tolist())):
                self._maps[shard] = self._open_map(shard)
                self._addresses[shard] = _address(self._maps[shard])
        finally:
            self._first_address, self._rows = _overlapping_rows(list(self._maps.values()), self._width)


def _overlapping_rows(maps: Sequence[Tokens], width: int) -> tuple[int, Tokens | None]:
    """Return the first address of some maps, and the rows of ``width`` values that begin at each byte from there on.

    None where the maps cannot be one array: they are of several types, not contiguous, or too far apart.
    """
    if not maps:
        return 0, None
    dtype = maps[0].dtype
    first = min(_address(mapped) for mapped in maps)
    num_bytes = max(_address(mapped) + mapped.nbytes for mapped in maps) - first
    num_rows, row_bytes = num_bytes - width * dtype.itemsize + 1, width * dtype.itemsize
    is_one = all(mapped.dtype == dtype and mapped.flags.c_contiguous for mapped in maps)
    if not is_one or num_rows < 1 or num_rows * row_bytes > _MOST_ARRAY_BYTES:
        return first, None
    return first, np.asarray(_Rows(first, num_rows, width, dtype))


class _Rows:
    """Overlapping rows in memory, as numpy is told of them; it must stay where it is as long as they are used."""

    def __init__(self, address: int, num_rows: int, width: int, dtype: np.dtype[Any]) -> None:
        self.__array_interface__ = {
            "version": 3,
            "data": (address, True),
            "shape": (num_rows, width),
            "strides": (1, dtype.itemsize),
            "typestr": dtype.str,
        }


def _address(tokens: Tokens) -> int:
    address: int = tokens.__array_interface__["data"][0]
    return address
