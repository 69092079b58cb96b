"""The keys that the queries of a grid attend to, one axis at a time, and the division of an axis into tiles.

Generalized neighborhood attention (Hassani et al., 2025, arXiv:2504.16922). Along an axis of L tokens, with a window of
k, stride s and dilation d, the tokens of one residue modulo d form an axis of their own, of L' tokens. On it query i
has the leader l = min(s floor(i / s) + floor(s / 2), L' - 1), the middle of its group, and attends to k keys starting
at

    clip(l - floor(k / 2), 0, L' - k)                         border "shift": every query has k keys
    l - floor(k / 2), without those outside the axis          border "masked"

On a causal axis the leader is the last of the group, l = min(s floor(i / s) + s - 1, L' - 1), and the keys are max(l -
k + 1, 0) to i. Axes are independent: a query attends to a key if it does so on every axis. All of this is computed in
numpy while tracing, except for the windows in a kernel's blocks that they cut (:meth:`Axis.span`).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax


class Reach(NamedTuple):
    """The tiles of keys that each tile of queries attends to, int (tiles,) each: those from ``first`` to ``stop``, of
    which all queries attend to all tokens of those from ``whole_first`` to ``whole_stop``.
    """

    first: np.ndarray
    stop: np.ndarray
    whole_first: np.ndarray
    whole_stop: np.ndarray


def divided(x: Any, size: int) -> tuple[Any, Any]:
    """Quotient and remainder of numbers that are not negative; in the fewest operations that a kernel can do."""
    if size & (size - 1) == 0:
        return x >> (size.bit_length() - 1), x & (size - 1)
    quotient = x // size if isinstance(x, np.ndarray) else lax.div(x, jnp.full_like(x, size))
    return quotient, x - size * quotient


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

    def count(self, residue: Any) -> Any:
        """The number of tokens with a residue."""
        least, rest = divmod(self.length, self.dilation)
        where = np.where if isinstance(residue, (int, np.ndarray)) else jnp.where
        return where(residue < rest, least + 1, least) if rest else least

    def span(self, own: Any, count: Any) -> tuple[Any, Any]:
        """The first key of the queries ``own`` and the one after their last, on the axis of a residue with ``count``
        tokens. With the border "masked" the first one may be negative.
        """
        xp: Any = np if isinstance(own, np.ndarray) else jnp
        group = own - divided(own, self.stride)[1]
        if self.causal:
            leader = xp.minimum(group + (self.stride - 1), count - 1)
            return xp.maximum(leader - (self.window - 1), 0), own + 1
        start = xp.minimum(group + self.stride // 2, count - 1) - self.window // 2
        if self.shifted:
            start = xp.minimum(xp.maximum(start, 0), count - self.window)
        return start, xp.minimum(start + self.window, count)

    @functools.cached_property
    def keys(self) -> np.ndarray:
        """int (length, window): the keys of each query in order, -1 for missing ones."""
        found = np.full((self.length, self.window), -1)
        for residue in range(self.dilation):
            tokens = np.arange(residue, self.length, self.dilation)
            start, stop = self.span(np.arange(len(tokens)), len(tokens))
            seen = start[:, None] + np.arange(self.window)
            real = (seen >= 0) & (seen < stop[:, None])
            found[tokens] = np.where(real, tokens[np.clip(seen, 0, len(tokens) - 1)], -1)
        return found

    @property
    def residues(self) -> dict[int, int]:
        """How many residues have a number of tokens."""
        least, rest = divmod(self.length, self.dilation)
        return {count: n for count, n in ((least + 1, rest), (least, self.dilation - rest)) if n and count}

    def reach(self, count: int, queries: int, keys: int, lead: int = 0) -> Reach:
        """Which tiles of ``keys`` tokens each tile of ``queries`` tokens attends to, on the axis of a residue with
        ``count`` tokens. The first tile of keys starts ``lead`` tokens before the axis.

        The windows of neighbors leave no gap, so that tiles which contain a key are those between two.
        """
        start, stop = self.span(np.arange(count), count)
        start, at = np.maximum(start, 0), np.arange(0, count, queries)
        whole_first = -(-(np.maximum.reduceat(start, at) + lead) // keys)
        return Reach(
            (np.minimum.reduceat(start, at) + lead) // keys,
            -(-(np.maximum.reduceat(stop, at) + lead) // keys),
            whole_first,
            np.maximum((np.minimum.reduceat(stop, at) + lead) // keys, whole_first),
        )

    def visits(self, queries: int, keys: int, lead: int = 0) -> int:
        """The number of pairs of tiles of which any query attends to any key."""
        found = {count: self.reach(count, queries, keys, lead) for count in self.residues}
        return sum(n * int((found[count].stop - found[count].first).sum()) for count, n in self.residues.items())

    def tiles(self, size: int) -> Tiles:
        """The axis divided into tiles of up to ``size`` queries with the same residue."""
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
    """An axis divided into tiles.

    Attributes:
      queries: int (tiles, size), the tokens of each tile; shorter tiles are filled with token 0.
      keys: int (tiles, box), the keys that some query of the tile attends to, and those between.
      allowed: bool (tiles, size, box), whether a query attends to a key.
      offset: int (tiles, size, box), key - query in steps of the dilation, plus window - 1, clipped to 0 ... 2 window -
        2.
      where: int (length,), the index of each token in the flattened ``queries``.
    """

    queries: np.ndarray
    keys: np.ndarray
    allowed: np.ndarray
    offset: np.ndarray
    where: np.ndarray


@functools.lru_cache(256)
def tiles(axis: Axis, size: int) -> Tiles:
    """:meth:`Axis.tiles`, cached, because every layer of a model needs the same."""
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
    """The ratio of tile pairs that dense attention and a kernel visit (the paper's simulator, section 3.3).

    A kernel computes every tile of keys to which any query of a tile of queries attends; tiles consist of tokens with
    the same residue. The fractions visited along the axes are multiplied.
    """
    share = 1.0
    for number, (length, window, step, apart, queries, keys) in enumerate(
        zip(shape, kernel_size, stride, dilation, query_tile, key_tile, strict=True)
    ):
        axis = Axis(length, window, step, apart, bool(causal and causal[number]))
        dense = math.prod(
            sum(n * -(-count // size) for count, n in axis.residues.items()) for size in (queries, keys)
        )
        share *= axis.visits(queries, keys) / dense
    return 1 / share
