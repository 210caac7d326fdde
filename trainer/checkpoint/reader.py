"""Filling tensors from a step: torch's planner says which rectangles, this file reads them and nothing else.

A rectangle becomes boxes of at most ``READ_BYTES`` from first to last byte, cut where rows lie further apart than a
block. Boxes that touch the same or neighbouring blocks are read together, rounded out to whole blocks; the crc32 of each
block is checked before a byte of it reaches a tensor. Memory is bounded by ``READ_BYTES`` per thread.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    TensorProperties,
    TensorStorageMetadata,
)

from iostack.errors import BrokenStepError, CheckpointError
from trainer.checkpoint.documents import IndexFile, ManifestFile, RankFile
from trainer.checkpoint.index import StoredTensor, read_index
from trainer.checkpoint.layout import data_path
from trainer.checkpoint.manifest import attempt_of, read_rank
from trainer.checkpoint.pieces import DTYPES, Shape, dtype_name
from trainer.checkpoint.safetensors_file import BLOCK_BYTES
from trainer.checkpoint.save_plan import Tensors
from trainer.checkpoint.store import Store, locate

READ_BYTES = 16 << 20
_THREADS = 4


@dataclass(frozen=True)
class Box:
    """A rectangle of a stored piece, in the elements of ``target``, which it fills.

    ``begin`` is the byte of the file where it begins, ``strides`` are the piece's own, in elements.
    """

    begin: int
    strides: Shape
    target: torch.Tensor

    @property
    def end(self) -> int:
        last = sum((size - 1) * stride for size, stride in zip(self.target.shape, self.strides))
        return self.begin + (last + 1) * self.target.itemsize


@dataclass(frozen=True)
class Read:
    """Blocks [begin, end) of a file, and the boxes that lie in them."""

    file: int
    begin: int
    end: int
    boxes: tuple[Box, ...]


def fill(store: Store, manifest: ManifestFile, index: IndexFile, tensors: Tensors) -> None:
    """Fill ``tensors`` in place from a step, whatever layout they or the step have.

    Raises BrokenStepError where the step does not have them, or not intact; some tensors may have been filled by then.
    """
    stored = read_index(index, manifest.files.bytes, set(tensors))
    for name, tensor in tensors.items():
        _check_fits(name, tensor, stored.get(name))
    blocks = _Blocks(store, manifest)
    reads = list(plan_reads(stored, tensors))
    blocks.prepare({read.file for read in reads})
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="checkpoint-read") as pool:
        for future in [pool.submit(_fill_boxes, blocks, read) for read in reads]:
            try:
                future.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise


def plan_reads(stored: dict[str, StoredTensor], tensors: Tensors) -> Iterator[Read]:
    """Give the reads that fill ``tensors``, each of about ``READ_BYTES`` at most."""
    metadata = Metadata(
        {
            name: TensorStorageMetadata(
                properties=TensorProperties(dtype=DTYPES[tensor.dtype]),
                size=torch.Size(tensor.shape),
                chunks=[
                    ChunkStorageMetadata(torch.Size(item.piece.offsets), torch.Size(item.piece.sizes))
                    for item in tensor.pieces
                ],
            )
            for name, tensor in stored.items()
        }
    )
    planner = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    planner.set_up_planner({name: tensor.detach() for name, tensor in tensors.items()}, metadata, is_coordinator=False)
    boxes: dict[int, list[Box]] = {}
    for item in planner.create_local_plan().items:
        source = stored[item.storage_index.fqn].pieces[item.storage_index.index or 0]
        target = planner.resolve_tensor(item)
        strides = _row_major(source.piece.sizes)
        begin = sum(offset * stride for offset, stride in zip(item.storage_offsets, strides)) * target.itemsize
        boxes.setdefault(source.file, []).extend(split(Box(source.begin + begin, strides, target)))
    for file, content in boxes.items():
        yield from _coalesce(file, content)


def split(box: Box) -> Iterator[Box]:
    """Cut a box into ones that are short enough to be read whole and have no gap of a block inside."""
    wide = [dim for dim, size in enumerate(box.target.shape) if size > 1]
    if not wide:
        yield box
        return
    dim = wide[0]
    step = box.strides[dim] * box.target.itemsize
    row = Box(box.begin, box.strides, box.target.narrow(dim, 0, 1))
    has_gaps = step - (row.end - row.begin) >= BLOCK_BYTES
    if box.end - box.begin <= READ_BYTES and not has_gaps:
        yield box
        return
    rows = 1 if has_gaps else max(1, READ_BYTES // step)
    for first in range(0, box.target.shape[dim], rows):
        part = box.target.narrow(dim, first, min(rows, box.target.shape[dim] - first))
        piece = Box(box.begin + first * step, box.strides, part)
        if part.shape[dim] == 1:
            yield from split(piece)
        else:
            yield piece


def _coalesce(file: int, boxes: list[Box]) -> Iterator[Read]:
    boxes.sort(key=lambda box: box.begin)
    group: list[Box] = []
    begin = end = 0
    for box in boxes:
        first, last = box.begin // BLOCK_BYTES, -(-box.end // BLOCK_BYTES)
        if group and (first > end or (max(last, end) - begin) * BLOCK_BYTES > READ_BYTES + BLOCK_BYTES):
            yield Read(file, begin, end, tuple(group))
            group = []
        if not group:
            begin, end = first, last
        group.append(box)
        end = max(end, last)
    if group:
        yield Read(file, begin, end, tuple(group))


class _Blocks:
    """Reads blocks of the files of a step and checks them; safe to use from several threads after ``prepare``."""

    def __init__(self, store: Store, manifest: ManifestFile) -> None:
        self._store = store
        self._manifest = manifest
        self._checksums: dict[int, Sequence[int]] = {}

    def prepare(self, files: set[int]) -> None:
        """Read the checksums of these files from the ranks that wrote them."""
        ranks: dict[int, RankFile] = {}
        for file in sorted(files):
            name = self._manifest.files.names[file]
            rank = int(name.split("-")[1])
            if rank >= self._manifest.world:
                raise BrokenStepError(f"{name} is of rank {rank}, and {self._manifest.world} ranks wrote the step")
            if rank not in ranks:
                ranks[rank] = read_rank(self._store, self._manifest, rank)
            self._checksums[file] = self._checksums_of(file, ranks[rank])

    def read(self, file: int, begin: int, end: int) -> bytearray:
        """Return blocks [begin, end) of a file, checked."""
        path = data_path(attempt_of(self._manifest), *self._numbers(file))
        first, last = begin * BLOCK_BYTES, min(end * BLOCK_BYTES, self._manifest.files.bytes[file])
        try:
            data = self._store.read_range(path, first, last)
        except FileNotFoundError as error:
            raise BrokenStepError(f"{locate(self._store, path)} is missing") from error
        if len(data) != last - first:
            raise BrokenStepError(f"{locate(self._store, path)} ends at byte {first + len(data)}")
        view = memoryview(data)
        for block in range(begin, end):
            part = view[(block - begin) * BLOCK_BYTES : (block - begin + 1) * BLOCK_BYTES]
            if zlib.crc32(part) != self._checksums[file][block]:
                raise BrokenStepError(
                    f"{locate(self._store, path)} is damaged: the crc32 of block {block} (bytes "
                    f"{block * BLOCK_BYTES} to {block * BLOCK_BYTES + len(part)}) is not the one that was saved"
                )
        return data if isinstance(data, bytearray) else bytearray(data)

    def _numbers(self, file: int) -> tuple[int, int]:
        _, rank, number = self._manifest.files.names[file].removesuffix(".safetensors").split("-")
        return int(rank), int(number)

    def _checksums_of(self, file: int, rank: RankFile) -> Sequence[int]:
        name, num_bytes = self._manifest.files.names[file], self._manifest.files.bytes[file]
        files = dict(zip(rank.files.names, zip(rank.files.bytes, rank.crc32)))
        recorded, checksums = files.get(name, (-1, []))
        if recorded != num_bytes or len(checksums) != -(-num_bytes // BLOCK_BYTES):
            raise BrokenStepError(f"the file of rank {rank.rank} does not describe {name} as the manifest does")
        return checksums


def _fill_boxes(blocks: _Blocks, read: Read) -> None:
    data = torch.frombuffer(blocks.read(read.file, read.begin, read.end), dtype=torch.uint8)
    start = read.begin * BLOCK_BYTES
    for box in read.boxes:
        source = data[box.begin - start : box.end - start].view(box.target.dtype)
        box.target.copy_(source.as_strided(box.target.shape, box.strides))


def _row_major(sizes: Shape) -> Shape:
    strides = [1] * len(sizes)
    for dim in range(len(sizes) - 2, -1, -1):
        strides[dim] = strides[dim + 1] * sizes[dim + 1]
    return tuple(strides)


def _check_fits(name: str, tensor: torch.Tensor, stored: StoredTensor | None) -> None:
    if tensor.device.type == "meta":
        raise CheckpointError(f"tensor {name} is on the meta device", hint="give it memory before loading")
    if stored is None:
        raise BrokenStepError(f"the step holds no tensor {name}")
    dtype = dtype_name(tensor.dtype, tensor=name)
    if (stored.dtype, stored.shape) != (dtype, tuple(tensor.shape)):
        raise BrokenStepError(
            f"tensor {name} was saved as {stored.dtype}{list(stored.shape)} and is {dtype}{list(tensor.shape)} here"
        )
