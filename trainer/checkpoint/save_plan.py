"""Which rank writes which pieces: torch's planner decides, from descriptions that all ranks exchange.

Each rank describes what it holds; every rank then calls ``DefaultSavePlanner.create_global_plan`` on all descriptions
and takes its own part. Pieces that several ranks hold are written once, spread over their holders; their bytes must be
equal on all of them. The plan of a layout is computed once: later saves exchange one digest.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
import xxhash
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import SavePlan as TorchPlan
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType
from torch.distributed.tensor import DTensor

from iostack.errors import CheckpointError
from trainer.checkpoint.documents import digest, encode
from trainer.checkpoint.exchange import Exchange
from trainer.checkpoint.pieces import DTYPES, Piece, dtype_name

Tensors = Mapping[str, torch.Tensor]
_Held = tuple[Piece, bool]


@dataclass(frozen=True)
class SavePlan:
    """``pieces`` are those that this rank writes; ``shared`` are those it holds like other ranks, by the holders."""

    layout: str
    pieces: tuple[Piece, ...]
    shared: Mapping[tuple[int, ...], tuple[Piece, ...]]


class SavePlanner:
    """Plans saves, and keeps the plan for as long as the layout of all ranks stays."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._plan: SavePlan | None = None

    def plan(self, tensors: Tensors, doing: str) -> SavePlan:
        """Return this rank's part of the plan; a collective. ``doing`` begins the CheckpointError that all ranks get."""
        exchange = self._exchange
        held = exchange.run(doing, lambda: describe(tensors))
        described = [_to_json(piece, is_shard) for piece, is_shard in held]
        layout = digest(encode(described))
        is_known = self._plan is not None and self._plan.layout == layout
        if not all(exchange.gather(is_known)):
            everything = exchange.gather(described)
            self._plan = exchange.run(
                doing, lambda: _divide(layout, [_from_json(rows) for rows in everything], exchange.rank)
            )
        assert self._plan is not None
        return self._plan

    def check_equal(self, plan: SavePlan, tensors: Tensors, doing: str) -> None:
        """Check that pieces held by several ranks have the same bytes on all of them; a collective.

        Costs one hash of what is replicated (about 8 GB/s) and a message per set of holders.
        """
        exchange = self._exchange
        if exchange.world == 1:
            return
        digests = exchange.run(
            doing,
            lambda: {
                holders: {piece.key: _hash(piece_bytes(piece, tensors)) for piece in pieces}
                for holders, pieces in plan.shared.items()
            },
        )
        sums = {str(holders): _hash("".join(parts.values()).encode()) for holders, parts in digests.items()}
        gathered: dict[str, dict[int, str]] = defaultdict(dict)
        for rank, part in enumerate(exchange.gather(sums)):
            for holders, value in part.items():
                gathered[holders][rank] = value
        unequal = {holders for holders, values in gathered.items() if len(set(values.values())) > 1}
        if not unequal:
            return
        details = exchange.gather(
            [
                [key[0], str(key[1]), value]
                for holders, parts in digests.items()
                if str(holders) in unequal
                for key, value in parts.items()
            ]
        )
        raise _unequal_error(details, doing)


def describe(tensors: Tensors) -> list[_Held]:
    """Return the pieces that this rank holds, each with whether it is a shard (a DTensor's) or a plain tensor."""
    for name, tensor in tensors.items():
        _check_tensor(name, tensor)
    planner = DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    planner.set_up_planner(dict(tensors), is_coordinator=False)
    held = []
    for item in planner.create_local_plan().items:
        data = item.tensor_data
        assert data is not None  # only values that are no tensors lack it
        dtype = dtype_name(data.properties.dtype, tensor=item.index.fqn)
        chunk = data.chunk
        shape, sizes = tuple(data.size), tuple(chunk.sizes)
        if not all(shape):  # an empty tensor is one piece, wherever the mesh would put its empty shards
            held.append((Piece(item.index.fqn, dtype, shape, (0,) * len(shape), shape), True))
        elif all(sizes):
            is_shard = item.type == WriteItemType.SHARD
            held.append((Piece(item.index.fqn, dtype, shape, tuple(chunk.offsets), sizes), is_shard))
    return held


def piece_bytes(piece: Piece, tensors: Tensors) -> memoryview:
    """Return the bytes of a piece that this rank holds: its own memory where it is contiguous on the host."""
    if not piece.num_bytes:
        return memoryview(b"")
    tensor = tensors[piece.name].detach()
    if isinstance(tensor, DTensor):
        tensor = tensor.to_local()
    if tuple(tensor.shape) != piece.sizes:
        raise CheckpointError(f"tensor {piece.name} has {tuple(tensor.shape)} here where {piece.sizes} was planned")
    host = tensor.resolve_conj().resolve_neg().cpu().contiguous().reshape(-1)
    return memoryview(cast(Any, host.view(torch.uint8).numpy()))


def _check_tensor(name: str, tensor: object) -> None:
    if not isinstance(tensor, torch.Tensor):
        raise CheckpointError(
            f"{name} is a {type(tensor).__name__} among the tensors", hint="pass it in the state, which is JSON"
        )
    if tensor.device.type == "meta" or tensor.layout != torch.strided:
        raise CheckpointError(f"tensor {name} has no plain memory: {tensor.device}, {tensor.layout}")
    if isinstance(tensor, DTensor) and any(placement.is_partial() for placement in tensor.placements):
        raise CheckpointError(
            f"tensor {name} is partial ({tensor.placements}): no rank has its value", hint="reduce it before saving"
        )
    dtype_name(tensor.dtype, tensor=name)


def _divide(layout: str, held: list[list[_Held]], rank: int) -> SavePlan:
    holders: dict[tuple[str, tuple[int, ...]], list[int]] = defaultdict(list)
    first: dict[str, tuple[Piece, int]] = {}
    for owner, rows in enumerate(held):
        for piece, _ in rows:
            holders[piece.key].append(owner)
            other, other_rank = first.setdefault(piece.name, (piece, owner))
            if (other.dtype, other.shape) != (piece.dtype, piece.shape):
                raise CheckpointError(
                    f"tensor {piece.name} is {other.dtype}{list(other.shape)} on rank {other_rank} and "
                    f"{piece.dtype}{list(piece.shape)} on rank {owner}"
                )
    planner = DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    try:
        plans, _ = planner.create_global_plan([TorchPlan([_item(*row) for row in rows]) for rows in held])
    except (ValueError, AssertionError) as error:
        raise CheckpointError(
            f"the tensors of the ranks do not fit together: {error}",
            hint="a sharded tensor must be a DTensor; a plain tensor must be whole and equal on all ranks",
        ) from error
    mine = {piece.key: piece for piece, _ in held[rank]}
    shared: dict[tuple[int, ...], list[Piece]] = defaultdict(list)
    for key, piece in sorted(mine.items()):
        if len(holders[key]) > 1:
            shared[tuple(holders[key])].append(piece)
    return SavePlan(
        layout,
        tuple(mine[item.index.fqn, tuple(item.index.offset or ())] for item in plans[rank].items),
        {key: tuple(pieces) for key, pieces in shared.items()},
    )


def _item(piece: Piece, is_shard: bool) -> WriteItem:
    return WriteItem(
        index=MetadataIndex(piece.name, piece.offsets),
        type=WriteItemType.SHARD if is_shard else WriteItemType.TENSOR,
        tensor_data=TensorWriteData(
            chunk=ChunkStorageMetadata(torch.Size(piece.offsets), torch.Size(piece.sizes)),
            properties=TensorProperties(dtype=DTYPES[piece.dtype]),
            size=torch.Size(piece.shape),
        ),
    )


def _to_json(piece: Piece, is_shard: bool) -> list[Any]:
    return [piece.name, piece.dtype, list(piece.shape), list(piece.offsets), list(piece.sizes), is_shard]


def _from_json(rows: list[list[Any]]) -> list[_Held]:
    return [
        (Piece(name, dtype, tuple(shape), tuple(offsets), tuple(sizes)), is_shard)
        for name, dtype, shape, offsets, sizes, is_shard in rows
    ]


def _hash(data: bytes | memoryview) -> str:
    return xxhash.xxh3_128_hexdigest(data)


def _unequal_error(details: list[list[list[str]]], doing: str) -> CheckpointError:
    seen: dict[tuple[str, str], dict[str, int]] = defaultdict(dict)
    for rank, rows in enumerate(details):
        for name, offsets, value in rows:
            seen[name, offsets].setdefault(value, rank)
    unequal = {key: ranks for key, ranks in sorted(seen.items()) if len(ranks) > 1}
    (name, _), ranks = next(iter(unequal.items()))
    one, other = sorted(ranks.values())[:2]
    more = f" ({len(unequal)} pieces differ)" if len(unequal) > 1 else ""
    return CheckpointError(
        f"{doing}: tensor {name} should be the same on ranks {one} and {other} and differs{more}",
        hint="the ranks have drifted apart, or one name is used for different things",
    )
