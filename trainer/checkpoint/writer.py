"""What one rank writes of a step: its safetensors files, then the document that says it is done."""

from __future__ import annotations

from collections.abc import Mapping

from trainer.checkpoint.documents import (
    JSON,
    FileColumns,
    ParentField,
    PieceColumns,
    RankFile,
    TensorColumns,
    plain,
    seal,
)
from trainer.checkpoint.layout import Attempt, StepId, data_path, rank_path
from trainer.checkpoint.pieces import Piece
from trainer.checkpoint.safetensors_file import FILE_BYTES, BlockSink, header, pack
from trainer.checkpoint.save_plan import Tensors, piece_bytes
from trainer.checkpoint.store import Store

State = Mapping[str, JSON]


def write_rank(
    store: Store,
    attempt: Attempt,
    pieces: tuple[Piece, ...],
    tensors: Tensors,
    *,
    rank: int,
    world: int,
    parent: StepId | None,
    state: State,
    settings: State,
    rank_state: State | None,
    file_bytes: int = FILE_BYTES,
) -> int:
    """Write this rank's part of an attempt; returns the bytes of its data files.

    The rank file is created last and only once everything before it is durable. ``state`` and ``settings`` are stored
    by rank 0 only.
    """
    # What JSON cannot hold is found on every rank, before anything is written.
    plain_state, plain_settings = plain(state, what="state"), plain(settings, what="settings")
    plain_rank_state = None if rank_state is None else plain(rank_state, what="rank_state")
    names, sizes, checksums, begins, file_of = [], [], [], [], []
    files = pack(pieces, file_bytes=file_bytes)
    for number, content in enumerate(files):
        path = data_path(attempt, rank, number)
        num_bytes, crc32, starts = _write_file(store, path, content, tensors)
        names.append(path.rpartition("/")[2])
        sizes.append(num_bytes)
        checksums.append(crc32)
        begins += starts
        file_of += [number] * len(content)
    written = [piece for content in files for piece in content]
    tensor_rows = {piece.name: row for row, piece in enumerate({piece.name: piece for piece in written}.values())}
    described = {piece.name: piece for piece in written}
    document = RankFile(
        step=attempt.id.step,
        generation=attempt.id.generation,
        attempt=attempt.number,
        rank=rank,
        world=world,
        parent=ParentField(step=parent.step, generation=parent.generation) if parent else None,
        files=FileColumns(names=names, bytes=sizes),
        crc32=checksums,
        tensors=TensorColumns(
            names=list(described),
            dtypes=[piece.dtype for piece in described.values()],
            shapes=[list(piece.shape) for piece in described.values()],
        ),
        pieces=PieceColumns(
            tensor=[tensor_rows[piece.name] for piece in written],
            file=file_of,
            begin=begins,
            offsets=[offset for piece in written for offset in piece.offsets],
            sizes=[size for piece in written for size in piece.sizes],
        ),
        settings=plain_settings if rank == 0 else None,
        state=plain_state if rank == 0 else None,
        rank_state=plain_rank_state,
    )
    store.create(rank_path(attempt, rank), seal(document))
    return sum(sizes)


def _write_file(store: Store, path: str, pieces: list[Piece], tensors: Tensors) -> tuple[int, list[int], list[int]]:
    head, begins = header(pieces)
    with store.open_new(path) as sink:
        blocks = BlockSink(sink)
        blocks.write(memoryview(head))
        for piece in pieces:
            blocks.write(piece_bytes(piece, tensors))
    return blocks.num_bytes, blocks.checksums(), begins
