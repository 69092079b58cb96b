"""Which keys the queries of a grid see, one axis at a time, and how an axis is cut into tiles.

Generalized neighborhood attention (Hassani et al., 2025, arXiv:2504.16922). Along an axis of L tokens, with a window of
k, stride s and dilation d, the tokens of one residue modulo d are an axis of their own, of L' tokens. On it query i has
the leader l = min(s floor(i / s) + floor(s / 2), L' - 1), the middle of its group, and sees the k keys from

    clip(l - floor(k / 2), 0, L' - k)                         border "shift": every query sees k keys
    l - floor(k / 2), of those that there are                 border "masked"

on. A causal axis has the last of the group, l = min(s floor(i / s) + s - 1, L' - 1), and keys max(l - k + 1, 0) to i.
Axes are independent: a query sees a key where every axis agrees. All of it is known while tracing, in numpy.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np


@dataclasses.dataclass(frozen=True)
class Axis:
    """One axis of the grid.

    Attributes:
      length, window, stride, dilation, causal: as above.
      shifted: the border is "shift".
    """

    length: int
    window: int
    stride: int = 1
    dilation: int = 1
    causal: bool = False
    shifted: bool = True

    @functools.cached_property
    def keys(self) -> np.ndarray:
        """int (length, window): the keys of each query in order, -1 for those that there are not."""
        found = np.full((self.length, self.window), -1)
        for residue in range(self.dilation):
            tokens = np.arange(residue, self.length, self.dilation)
            count, own = len(tokens), np.arange(len(tokens))
            first = self.stride * (own // self.stride)
            if self.causal:
                start = np.maximum(np.minimum(first + self.stride - 1, count - 1) - self.window + 1, 0)
            else:
                start = np.minimum(first + self.stride // 2, count - 1) - self.window // 2
                start = np.clip(start, 0, count - self.window) if self.shifted else start
            seen = start[:, None] + np.arange(self.window)
            real = (seen >= 0) & (seen < count) & (~np.bool_(self.causal) | (seen <= own[:, None]))
            found[tokens] = np.where(real, tokens[np.clip(seen, 0, count - 1)], -1)
        return found

    def tiles(self, size: int) -> Tiles:
        """The axis in tiles of ``size`` queries, of one residue each."""
        rows: list[np.ndarray] = []
        for residue in range(self.dilation):
            tokens = np.arange(residue, self.length, self.dilation)
            rows += [tokens[start : start + size] for start in range(0, len(tokens), size)]
        boxes = []
        for row in rows:
            seen = self.keys[row]
            seen = seen[seen >= 0]
            boxes.append(np.arange(seen.min(), seen.max() + 1, self.dilation) if len(seen) else row[:1])
        longest, widest = max(map(len, rows)), max(map(len, boxes))
        queries = np.stack([np.pad(row, (0, longest - len(row)), constant_values=-1) for row in rows])
        keys = np.stack([np.pad(box, (0, widest - len(box)), constant_values=-2) for box in boxes])
        seen = np.where(self.keys < 0, -3, self.keys)[queries]
        allowed = (seen[:, :, None] == keys[:, None, :, None]).any(3) & (queries >= 0)[:, :, None]
        where = np.empty(self.length, int)
        where[queries[queries >= 0]] = np.flatnonzero(queries >= 0)
        offset = np.clip(
            (keys[:, None] - queries[:, :, None]) // self.dilation + self.window - 1, 0, 2 * self.window - 2
        )
        return Tiles(np.maximum(queries, 0), np.maximum(keys, 0), allowed, offset, where)


@dataclasses.dataclass(frozen=True, eq=False)
class Tiles:
    """An axis cut into tiles.

    Attributes:
      queries: int (tiles, size), the tokens of each tile; the first one of the axis where a tile has no more.
      keys: int (tiles, box), the keys that some query of the tile sees, and those between.
      allowed: bool (tiles, size, box).
      offset: int (tiles, size, box), key - query + window - 1 in steps of the dilation, clipped to 0 ... 2 window - 2.
      where: int (length,), the place of each token in ``queries``, flattened.
    """

    queries: np.ndarray
    keys: np.ndarray
    allowed: np.ndarray
    offset: np.ndarray
    where: np.ndarray


@functools.lru_cache(256)
def tiles(axis: Axis, size: int) -> Tiles:
    """:meth:`Axis.tiles`, kept: every layer of a model asks for the same."""
    return axis.tiles(size)


def speedup(
    shape: tuple[int, ...],
    kernel_size: tuple[int, ...],
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
    query_tile: tuple[int, ...],
    key_tile: tuple[int, ...],
    causal: tuple[bool, ...] | None = None,
) -> float:
    """How many times fewer pairs of tiles a kernel visits than dense attention does (the paper's simulator, section
    3.3).

    A kernel computes every tile of keys that any query of a tile of queries sees; tiles are of the tokens of one
    residue. Products along the axes of the shares that each visits.
    """
    share = 1.0
    for number, (length, window, step, apart, queries, keys) in enumerate(
        zip(shape, kernel_size, stride, dilation, query_tile, key_tile, strict=True)
    ):
        axis = Axis(length, window, step, apart, bool(causal and causal[number]))
        visited = dense = 0
        for residue in range(apart):
            own = axis.keys[residue::apart]
            for start in range(0, len(own), queries):
                seen = own[start : start + queries]
                visited += len(np.unique((seen[seen >= 0] - residue) // apart // keys))
            dense += -(-len(own) // queries) * sum(
                -(-len(range(other, length, apart)) // keys) for other in range(apart)
            )
        share *= visited / dense
    return 1 / share
