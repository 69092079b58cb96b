"""Documents packed into rows: whole where they fit, with as few rows as best fit finds.

    documents -> pieces of at most a row (a longer document fills rows of its own; what is left of it is one more piece)
              -> the longest first, each into the fullest row that has room for it

(Fewer Truncations Improve Language Modeling, arXiv:2404.10830, section 3.) Cutting a stream into windows, in contrast,
cuts two documents a row, however short they are.
"""

from __future__ import annotations

import bisect
from typing import NamedTuple

import numpy as np


class Pieces(NamedTuple):
    """Pieces of documents, sorted by row and within a row by ``start``; int64 (pieces,) each, and of rows (rows + 1,).

    Attributes:
      start: where in the stream a piece begins.
      size: its tokens.
      first: of each row, its first piece; at the end the number of all.
    """

    start: np.ndarray
    size: np.ndarray
    first: np.ndarray


def pack(borders: np.ndarray, length: int, multiple: int = 1) -> Pieces:
    """Packs the documents of a stream into rows.

    Time is that of a sort and, in Python, a few microseconds a piece.

    Args:
      borders: where in the stream each document begins, ascending, and where the last one ends.
      length: tokens of a row.
      multiple: documents begin in their row at multiples of this many tokens; it divides ``length``.
    """
    starts, sizes = borders[:-1], np.diff(borders)
    counts = -(-sizes // length)
    document = np.repeat(np.arange(len(sizes)), counts)
    number = np.arange(len(document)) - np.repeat(np.cumsum(counts) - counts, counts)
    start = starts[document] + number * length
    size = np.minimum(sizes[document] - number * length, length)
    row = _best_fit(-(-size // multiple), length // multiple)
    order = np.lexsort((start, row))
    return Pieces(start[order], size[order], np.searchsorted(row[order], np.arange(row.max(initial=-1) + 2)))


def _best_fit(sizes: np.ndarray, capacity: int) -> np.ndarray:
    """The row of each piece, the longest placed first; no two rows' contents together fit in one."""
    rows = np.empty(len(sizes), np.int64)
    with_room: list[list[int]] = [[] for _ in range(capacity + 1)]  # rows by the room that they have
    rooms: list[int] = []  # ascending, those that some row has
    count = 0
    for piece in np.argsort(-sizes, kind="stable").tolist():
        size = int(sizes[piece])
        place = bisect.bisect_left(rooms, size)
        if place == len(rooms):
            room, row, count = capacity, count, count + 1
        else:
            room = rooms[place]
            row = with_room[room].pop()
            if not with_room[room]:
                del rooms[place]
        rows[piece] = row
        if left := room - size:
            if not with_room[left]:
                bisect.insort(rooms, left)
            with_room[left].append(row)
    return rows
