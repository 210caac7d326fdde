"""The index of a step: for each tensor, the pieces that hold it and where they lie.

The index is the join of the rank files, sorted by tensor and offsets, so that whoever builds it gets the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from iostack.errors import BrokenStepError
from trainer.checkpoint.documents import FileColumns, IndexFile, PieceColumns, RankFile, TensorColumns
from trainer.checkpoint.pieces import DTYPES, Piece, Shape, item_bytes, overlapping


@dataclass(frozen=True)
class StoredPiece:
    """A piece, and the file (its number in the manifest) and byte at which it begins."""

    piece: Piece
    file: int
    begin: int

    @property
    def end(self) -> int:
        return self.begin + self.piece.num_bytes


@dataclass(frozen=True)
class StoredTensor:
    name: str
    dtype: str
    shape: Shape
    pieces: tuple[StoredPiece, ...]


def join(ranks: Sequence[RankFile]) -> tuple[FileColumns, IndexFile]:
    """Return the files of all ranks, in order, and the index of their pieces. The ranks' own tables are trusted only
    to be of the right types: what they say is checked by ``read_index`` like any other index."""
    names: list[str] = []
    sizes: list[int] = []
    stored: list[StoredPiece] = []
    described: dict[str, tuple[str, Shape]] = {}
    for rank in ranks:
        stored += _rows(rank.tensors, rank.pieces, first_file=len(names))
        names += rank.files.names
        sizes += rank.files.bytes
        for name, dtype, shape in zip(rank.tensors.names, rank.tensors.dtypes, rank.tensors.shapes):
            described.setdefault(name, (dtype, tuple(shape)))
    tensors = sorted(described)
    row = {name: number for number, name in enumerate(tensors)}
    stored.sort(key=lambda item: item.piece.key)
    return FileColumns(names=names, bytes=sizes), IndexFile(
        tensors=TensorColumns(
            names=tensors,
            dtypes=[described[name][0] for name in tensors],
            shapes=[list(described[name][1]) for name in tensors],
        ),
        pieces=PieceColumns(
            tensor=[row[item.piece.name] for item in stored],
            file=[item.file for item in stored],
            begin=[item.begin for item in stored],
            offsets=[offset for item in stored for offset in item.piece.offsets],
            sizes=[size for item in stored for size in item.piece.sizes],
        ),
    )


def read_index(index: IndexFile, file_bytes: Sequence[int], wanted: set[str] | None = None) -> dict[str, StoredTensor]:
    """Return the tensors of an index by name, only those of ``wanted`` if given.

    Raises BrokenStepError where a piece lies outside of its tensor or file, or where the pieces of a tensor overlap or
    leave a gap: what is returned fills each tensor exactly once.
    """
    pieces: dict[str, list[StoredPiece]] = {
        name: [] for name in index.tensors.names if wanted is None or name in wanted
    }
    for stored in _rows(index.tensors, index.pieces, wanted=wanted):
        if stored.file >= len(file_bytes) or stored.end > file_bytes[stored.file]:
            raise BrokenStepError(f"the index is wrong: a piece of {stored.piece.name} ends outside of its file")
        if stored.begin % item_bytes(stored.piece.dtype):
            raise BrokenStepError(f"the index is wrong: a piece of {stored.piece.name} is not aligned to its dtype")
        pieces[stored.piece.name].append(stored)
    tensors = {}
    for name, dtype, shape in zip(index.tensors.names, index.tensors.dtypes, index.tensors.shapes):
        if name in pieces:
            tensors[name] = StoredTensor(name, dtype, tuple(shape), tuple(pieces[name]))
            _check_filled(tensors[name])
    return tensors


def _rows(
    tensors: TensorColumns, pieces: PieceColumns, *, first_file: int = 0, wanted: set[str] | None = None
) -> Iterator[StoredPiece]:
    num_tensors, num_pieces = len(tensors.names), len(pieces.tensor)
    if not num_tensors == len(tensors.dtypes) == len(tensors.shapes) == len(set(tensors.names)):
        raise BrokenStepError("the index is wrong: its table of tensors has columns of different lengths")
    if not num_pieces == len(pieces.file) == len(pieces.begin):
        raise BrokenStepError("the index is wrong: its table of pieces has columns of different lengths")
    unknown = set(tensors.dtypes) - DTYPES.keys()
    if unknown:
        raise BrokenStepError(f"the index is wrong: there is no dtype {min(unknown)[:40]!r}")
    at = 0
    for row, file, begin in zip(pieces.tensor, pieces.file, pieces.begin):
        if row >= num_tensors:
            raise BrokenStepError(f"the index is wrong: a piece belongs to tensor {row} of {num_tensors}")
        name, shape = tensors.names[row], tuple(tensors.shapes[row])
        dims = len(shape)
        if wanted is not None and name not in wanted:
            at += dims
            continue
        offsets, sizes = tuple(pieces.offsets[at : at + dims]), tuple(pieces.sizes[at : at + dims])
        at += dims
        if len(sizes) < dims or len(offsets) < dims or any(o + s > n for o, s, n in zip(offsets, sizes, shape)):
            raise BrokenStepError(f"the index is wrong: a piece of {name} lies outside of it")
        yield StoredPiece(Piece(name, tensors.dtypes[row], shape, offsets, sizes), first_file + file, begin)
    if at != len(pieces.offsets) or at != len(pieces.sizes):
        raise BrokenStepError("the index is wrong: its offsets do not belong to its pieces")


def _check_filled(tensor: StoredTensor) -> None:
    held = sum(math.prod(stored.piece.sizes) for stored in tensor.pieces)
    if held != math.prod(tensor.shape):
        raise BrokenStepError(
            f"{tensor.name} is incomplete: {held} of its {math.prod(tensor.shape)} elements are stored"
        )
    if overlapping([(stored.piece.offsets, stored.piece.sizes) for stored in tensor.pieces]):
        raise BrokenStepError(f"the index is wrong: pieces of {tensor.name} overlap")
