"""Packing once more, as plain as possible: lists of (document, index) for tokens, and bins that are looked at one by one."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from plan import reference

Place = tuple[int, int]
"""(document, token of it)"""
Row = list[Place | None]
"""seq_len + 1 places; None is padding."""
SPLIT_ORDER, DOCUMENT_ORDER, SEQUENCE_ORDER, PHASE = 10, 5, 7, 3


def document(number: int, length: int) -> list[Place]:
    return [(number, index) for index in range(length)]


def best_fit(lengths: Sequence[int], capacity: int) -> list[int]:
    """The bin of each piece: the longest first, each into the fullest bin that has room, of equals the one used last."""
    rooms: list[int] = []
    used: list[int] = []
    bins = [0] * len(lengths)
    for turn, piece in enumerate(sorted(range(len(lengths)), key=lambda piece: -lengths[piece])):
        fitting = [
            (rooms[number], -used[number], number) for number in range(len(rooms)) if rooms[number] >= lengths[piece]
        ]
        if fitting:
            number = min(fitting)[2]
        else:
            number = len(rooms)
            rooms.append(capacity)
            used.append(0)
        rooms[number] -= lengths[piece]
        used[number] = turn
        bins[piece] = number
    return bins


def fitted_rows(documents: Sequence[list[Place]], seq_len: int) -> list[Row]:
    pieces = [
        (each[start : start + seq_len], each[start + seq_len : start + seq_len + 1])
        for each in documents
        for start in range(0, len(each), seq_len)
    ]
    rows: dict[int, Row] = {}
    for (piece, label), number in zip(pieces, best_fit([len(piece) for piece, _ in pieces], seq_len)):
        rows.setdefault(number, []).extend(piece + label)
    return [rows[number] + [None] * (seq_len + 1 - len(rows[number])) for number in range(len(rows))]


def cut_rows(documents: Sequence[list[Place]], seq_len: int, first: int) -> list[Row]:
    stream = [place for each in documents for place in each]
    count = max(len(stream) - 1, 0) // seq_len
    return [list(stream[first + k * seq_len :][: seq_len + 1]) for k in range(count)]


def split_rows(lengths: Sequence[int], seq_len: int, seed: int, epoch: int, shard: int) -> list[Row]:
    """The rows of a token shard in an epoch."""
    order = reference.permutation(reference.derive_key(seed, SPLIT_ORDER, epoch, shard), len(lengths))
    places = reference.sequences(sum(lengths), seq_len, seed, epoch, shard)
    return cut_rows([document(number, lengths[number]) for number in order], seq_len, places[0].start if places else 0)


def unit_rows(
    packing: str, lengths: Sequence[int], seq_len: int, seed: int, epoch: int, unit: int, first: int = 0
) -> list[Row]:
    """The rows of a unit whose first document is number ``first``, in the order in which it gives them."""
    order = reference.permutation(reference.derive_key(seed, DOCUMENT_ORDER, epoch, unit), len(lengths))
    documents = [document(first + number, lengths[number]) for number in order]
    if packing == "best_fit":
        rows = fitted_rows(documents, seq_len)
    else:
        total = sum(lengths)
        slack = (total - 1) % seq_len if total else 0
        rows = cut_rows(documents, seq_len, reference.derive_key(seed, PHASE, epoch, unit) % (slack + 1))
    outputs = reference.permutation(reference.derive_key(seed, SEQUENCE_ORDER, epoch, unit), len(rows))
    return [rows[output] for output in outputs]


def position_ids(row: Row) -> list[int]:
    positions = [0]
    for before, here in pairwise(row[:-1]):
        is_same = before is here is None or (before is not None and here is not None and before[0] == here[0])
        positions.append(positions[-1] + 1 if is_same else 0)
    return positions


def loss_mask(row: Row) -> list[bool]:
    return [label is not None and here is not None and here[0] == label[0] for here, label in pairwise(row)]
