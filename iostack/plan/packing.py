"""Packing documents into sequences: cut one stream of them, or fit whole ones together.

    cut        |--- document ---|-- document --|- doc|  one stream of documents, cut every seq_len tokens
    best fit   |--- document ---|- document -|......|   whole documents, the longest first, and padding

Best-fit packing truncates no document that fits into a sequence (Ding et al. 2024, arXiv:2404.10830).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Int64s = NDArray[np.int64]
Bounds = NDArray[np.int64] | NDArray[np.uint32]


@dataclass(frozen=True)
class Pieces:
    """Runs of tokens of documents that make up rows: parallel int64[P], row after row, and ``counts``, int64[rows].

    Piece p is ``lengths[p]`` >= 1 tokens of document ``documents[p]`` from its token ``offsets[p]`` on; the first
    ``counts[0]`` pieces make up row 0, and so on.
    """

    documents: Int64s
    offsets: Int64s
    lengths: Int64s
    counts: Int64s


def cut(bounds: Int64s, begins: Int64s, width: int) -> Pieces:
    """Return the rows [begin, begin + width) of a stream of documents; they must lie inside it.

    Document d is [``bounds[d]``, ``bounds[d + 1]``) of the stream.
    """
    first = np.searchsorted(bounds, begins, side="right") - 1
    stop = np.searchsorted(bounds, begins + width, side="left")
    return cut_documents(bounds, begins, width, first=first, counts=stop - first)


def cut_documents(bounds: Bounds, begins: Int64s, width: int, *, first: Int64s, counts: Int64s) -> Pieces:
    """Return the rows [begin, begin + width) of streams of documents, of which each row reads ``counts`` from ``first`` on.

    Document d is [``bounds[d]``, ``bounds[d + 1]``) of its stream; those of several may follow each other.
    """
    stops = np.cumsum(counts)
    documents = np.arange(stops[-1] if len(stops) else 0) + np.repeat(first - stops + counts, counts)
    rows = np.repeat(begins, counts)
    starts, ends = bounds[documents].astype(np.int64), bounds[documents + 1].astype(np.int64)
    offsets = np.maximum(rows - starts, 0)
    lengths = np.minimum(ends, rows + width) - starts - offsets
    if lengths.all():
        return Pieces(documents, offsets, lengths, counts)
    held = lengths > 0  # empty documents inside a row
    counts = np.add.reduceat(held, stops - counts, dtype=np.int64)
    return Pieces(documents[held], offsets[held], lengths[held], counts)


def fit(lengths: Int64s, seq_len: int) -> Pieces:
    """Return rows of whole documents of ``lengths``, best-fit-decreasing; every token stands in exactly one row.

    Documents longer than ``seq_len`` are first split into pieces of ``seq_len``, each of which has one token more: the
    first of the next piece, as its last label. Empty documents stand in no row. Inside a row, pieces keep the order of
    their documents; of equally long ones the first is placed first.
    """
    parts = -(-lengths // seq_len)
    documents = np.repeat(np.arange(len(lengths)), parts)
    first = np.cumsum(parts) - parts
    offsets = (np.arange(len(documents)) - first[documents]) * seq_len
    left = lengths[documents] - offsets
    rows = best_fit(np.minimum(left, seq_len), seq_len)
    order = np.argsort(rows, kind="stable")
    return Pieces(documents[order], offsets[order], np.minimum(left, seq_len + 1)[order], np.bincount(rows))


def best_fit(lengths: Int64s, capacity: int) -> Int64s:
    """Return the bin of each piece, numbered from 0; the longest are placed first, each where the least room is left.

    All lengths are 1 to ``capacity``. Of bins with equally much room the one that was used last is taken. The rooms
    that there are stand in one sorted list, each once: a placement is a bisection, not a search through the bins.
    """
    order = np.argsort(-lengths, kind="stable")
    descending = lengths[order]
    bins = np.empty(len(lengths), np.int64)
    # No two pieces longer than half a bin share one.
    num_bins = int(np.count_nonzero(2 * descending > capacity))
    bins[order[:num_bins]] = np.arange(num_bins)
    by_room: defaultdict[int, list[int]] = defaultdict(list)
    for number, room in enumerate((capacity - descending[:num_bins]).tolist()):
        by_room[room].append(number)
    rooms = sorted(by_room)
    placed = []
    for length in descending[num_bins:].tolist():
        at = bisect_left(rooms, length)
        if at < len(rooms):
            room = rooms[at]
            same = by_room[room]
            number = same.pop()
            if not same:
                del rooms[at]
        else:
            room, number = capacity, num_bins
            num_bins += 1
        placed.append(number)
        room -= length
        same = by_room[room]
        if not same:
            insort(rooms, room)
        same.append(number)
    bins[order[len(order) - len(placed) :]] = placed
    return bins
