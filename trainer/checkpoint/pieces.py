"""A piece: a rectangle of one tensor, the unit in which tensors are stored."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from iostack.errors import CheckpointError

Shape = tuple[int, ...]

# The names of the safetensors format. It has none for complex128 and quantized types; 4-bit floats count two per byte
# there and one in torch, so they are left out.
DTYPES: dict[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "U16": torch.uint16,
    "I32": torch.int32,
    "U32": torch.uint32,
    "I64": torch.int64,
    "U64": torch.uint64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E8M0": torch.float8_e8m0fnu,
}
_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Piece:
    """A rectangle of the tensor ``name``: ``sizes`` elements per dimension from ``offsets`` on.

    ``dtype`` is the safetensors name; ``shape`` is that of the whole tensor.
    """

    name: str
    dtype: str
    shape: Shape
    offsets: Shape
    sizes: Shape

    @property
    def num_bytes(self) -> int:
        return math.prod(self.sizes) * item_bytes(self.dtype)

    @property
    def is_whole(self) -> bool:
        return self.sizes == self.shape

    @property
    def key(self) -> tuple[str, Shape]:
        return self.name, self.offsets


def item_bytes(dtype: str) -> int:
    return DTYPES[dtype].itemsize


def dtype_name(dtype: torch.dtype, *, tensor: str) -> str:
    """Return the safetensors name of a dtype, or raise CheckpointError that names the tensor."""
    try:
        return _DTYPE_NAMES[dtype]
    except KeyError:
        raise CheckpointError(
            f"tensor {tensor} is of {dtype}, for which the safetensors format has no name",
            hint=f"convert it before saving; it can hold {', '.join(sorted(DTYPES))}",
        ) from None


def overlapping(pieces: Sequence[tuple[Shape, Shape]]) -> tuple[int, int] | None:
    """Return the numbers of two of the (offsets, sizes) rectangles that share an element, None if none do.

    Sweeps along the dimension with the most distinct offsets: O(n log n) for the layouts that meshes make.
    """
    filled = [number for number, (_, sizes) in enumerate(pieces) if all(sizes)]
    if len(filled) < 2:
        return None
    dims = len(pieces[0][0])
    if not dims:
        return filled[0], filled[1]
    sweep = max(range(dims), key=lambda dim: len({pieces[number][0][dim] for number in filled}))
    filled.sort(key=lambda number: pieces[number][0][sweep])
    active: list[int] = []
    for number in filled:
        offsets, sizes = pieces[number]
        active = [other for other in active if pieces[other][0][sweep] + pieces[other][1][sweep] > offsets[sweep]]
        for other in active:
            begins, lengths = pieces[other]
            if all(begins[d] < offsets[d] + sizes[d] and offsets[d] < begins[d] + lengths[d] for d in range(dims)):
                return other, number
        active.append(number)
    return None
