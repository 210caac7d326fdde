"""Keyed hashes and permutations: the only source of randomness in the order of samples.

The functions are written here, not taken from a library, because their streams must never change: golden tests pin
them. The mixing function is the finaliser of SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number
Generators, 2014), applied twice; it is a bijection of 64-bit numbers.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MULTIPLIER_1 = 0xBF58476D1CE4E5B9
_MULTIPLIER_2 = 0x94D049BB133111EB
_PIECE = 1 << 15


def mix(value: int) -> int:
    """Return a 64-bit hash of a 64-bit number; a bijection."""
    value &= _MASK
    value = ((value ^ (value >> 30)) * _MULTIPLIER_1) & _MASK
    value = ((value ^ (value >> 27)) * _MULTIPLIER_2) & _MASK
    return value ^ (value >> 31)


def derive_key(*parts: int) -> int:
    """Return a 64-bit key for a tuple of integers, for instance (seed, purpose, epoch, segment, window)."""
    key = len(parts)
    for part in parts:
        key = mix(mix((part + _GOLDEN) & _MASK) ^ ((key * _GOLDEN + 1) & _MASK))
    return key


def keyed_hash(key: int, values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return the 64-bit hashes of ``values`` under ``key``: a bijection of 64-bit numbers for every key."""
    hashes = values ^ np.uint64(key)
    _mix_in_place(hashes)
    hashes += np.uint64(mix(key ^ _GOLDEN))
    _mix_in_place(hashes)
    return hashes


def permutation(key: int, length: int) -> NDArray[np.int64]:
    """Return the permutation of range(length) for ``key``.

    It is the stable argsort of the upper 32 bits of the keyed hashes of 0, 1, 2, ..., computed as two passes of a radix
    sort over 16 bits: for 1e6 numbers 27 ms, against 90 ms for an argsort of 64 bits.
    """
    upper, lower = _upper_hashes(key, length)
    by_lower = np.argsort(lower, kind="stable").astype(np.uint32 if length < 1 << 32 else np.int64)
    del lower
    order = np.argsort(upper[by_lower], kind="stable")
    order[:] = by_lower[order]
    return order


def _upper_hashes(key: int, length: int) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
    """Return bits 48 to 63 and 32 to 47 of the keyed hashes of range(length), computed in pieces to stay in the cache."""
    upper, lower = np.empty(length, np.uint16), np.empty(length, np.uint16)
    for start in range(0, length, _PIECE):
        stop = min(start + _PIECE, length)
        hashes = keyed_hash(key, np.arange(start, stop, dtype=np.uint64))
        upper[start:stop] = hashes >> np.uint64(48)
        lower[start:stop] = (hashes >> np.uint64(32)) & np.uint64(0xFFFF)
    return upper, lower


def _mix_in_place(values: NDArray[np.uint64]) -> None:
    shifted = np.empty_like(values)
    for shift, multiplier in ((30, _MULTIPLIER_1), (27, _MULTIPLIER_2)):
        np.right_shift(values, np.uint64(shift), out=shifted)
        np.bitwise_xor(values, shifted, out=values)
        np.multiply(values, np.uint64(multiplier), out=values)
    np.right_shift(values, np.uint64(31), out=shifted)
    np.bitwise_xor(values, shifted, out=values)
