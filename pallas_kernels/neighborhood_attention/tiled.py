"""Neighborhood attention as attention with a mask, of tokens in the order of tiles: what the kernels compute.

Multi-dimensional tiling (Generalized Neighborhood Attention, Hassani et al., 2025, arXiv:2504.16922, section 3).
Queries, and keys with their values, are reordered so that consecutive tokens are a tile of the grid, a box with powers
of two as sides: 8 x 16 tokens of a map for a block of 128. In that order neighborhood attention is
:func:`pallas_kernels.attention` with a mask, :class:`Neighborhood`, that is a function of two indices, and its kernels
serve it forward and backward. A block of queries visits the blocks of keys in which one of its windows has a key; the
mask is evaluated in those that the windows cut. With a dilation the tokens of one residue form a grid of their own.

Queries and keys have tiles of their own. Along an axis the windows of a tile of a queries and of stride 1 reach over a
+ k - 1 keys, of the window k. The tiles of keys start a number of tokens before the grid so that they begin where the
reach of a tile of queries does: then it meets ceil((a + k - 1) / b) of b keys; with the tiles of queries as tiles of
keys it would meet 3 of 8 for a = b = 8 and k = 7, not 2. The sides are those of the fewest pairs, by counting.

For n queries, visits of blocks v (:attr:`Neighborhood.visits`), blocks of p x q tokens, heads h of width d:

    products        4 v p q h d operations forward, 18 v p q h d with the gradients, which compute weights again
    exponentials    v p q h forward, 3 v p q h with the gradients
    bytes           blocks are read v times; besides, q, k, v and the output are read and written once more, to be
                    reordered. Nothing is copied for each tile, as the boxes of XLA's form are.

For a map of 56 x 56 tokens with windows of 7 x 7, p = q = 128, v = 98: 512 pairs a query. For a volume of 30 x 48 x 80
with windows of 18 x 24 x 24 and strides of 16 x 8 x 8 no block is cut, and the pairs are those of the windows: 10,368 a
query, 1/11 of all.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import operator
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.attention import blocks
from pallas_kernels.attention.call import AttentionCall
from pallas_kernels.attention.masks import Pattern
from pallas_kernels.neighborhood_attention.call import NeighborhoodCall
from pallas_kernels.neighborhood_attention.geometry import Axis, divided

STEP = 2**15
"""Pairs of a query and a key that are taken to cost as much as starting a block: an assumption, which was not measured
on a device. It matters for the choice between blocks of different sizes.
"""


@dataclasses.dataclass(frozen=True)
class Order:
    """The tokens of a grid in the order of tiles: by residues of all axes, then by tiles, then within the tile.

    Attributes:
      grid: the axes.
      sides: tokens of a tile along each axis, powers of two.
      leads: tokens along each axis by which the first tile starts before the grid. Tiles are filled with zeros.
    """

    grid: tuple[Axis, ...]
    sides: tuple[int, ...]
    leads: tuple[int, ...]

    @property
    def tile(self) -> int:
        """Tokens of a tile."""
        return math.prod(self.sides)

    @functools.cached_property
    def tiles(self) -> tuple[int, ...]:
        """Number of tiles along each axis, of one residue."""
        return tuple(
            -(-(lead + -(-axis.length // axis.dilation)) // side)
            for axis, side, lead in zip(self.grid, self.sides, self.leads, strict=True)
        )

    @property
    def length(self) -> int:
        """Number of tokens with those that fill tiles."""
        return math.prod(axis.dilation for axis in self.grid) * math.prod(self.tiles) * self.tile

    def ordered(self, x: jax.Array) -> jax.Array:
        """(batch, *grid, ...) to (batch, length, ...)."""
        count, parts, pads = len(self.grid), [], [(0, 0)]
        for axis, side, tiles, lead in zip(self.grid, self.sides, self.tiles, self.leads, strict=True):
            before = lead * axis.dilation
            pads.append((before, tiles * side * axis.dilation - before - axis.length))
            parts += [tiles, side, axis.dilation]
        rest = x.shape[count + 1 :]
        x = jnp.pad(x, [*pads, *((0, 0),) * len(rest)]).reshape(x.shape[0], *parts, *rest)
        return x.transpose(0, *self._axes, *range(3 * count + 1, x.ndim)).reshape(x.shape[0], self.length, *rest)

    def restored(self, x: jax.Array) -> jax.Array:
        """The inverse of :meth:`ordered`."""
        count, rest = len(self.grid), x.shape[2:]
        parts = [[axis.dilation for axis in self.grid], self.tiles, self.sides]
        x = x.reshape(x.shape[0], *itertools.chain(*parts), *rest)
        x = x.transpose(0, *(1 + np.argsort(self._axes)), *range(3 * count + 1, x.ndim))
        x = x.reshape(x.shape[0], *map(math.prod, zip(*parts, strict=True)), *rest)
        starts = [lead * axis.dilation for axis, lead in zip(self.grid, self.leads, strict=True)]
        cuts = [slice(start, start + axis.length) for axis, start in zip(self.grid, starts, strict=True)]
        return x[(slice(None), *cuts)]

    @property
    def _axes(self) -> tuple[int, ...]:
        """Where residues, tiles and places of all axes are, among (tiles, side, dilation) of each axis in turn."""
        count = len(self.grid)
        return tuple(1 + 3 * axis + part for part in (2, 0, 1) for axis in range(count))

    def places(self, index: Any) -> list[tuple[Any, Any]]:
        """For each axis the residue and the place on its axis of the tokens at indices of the order, in numpy or in
        JAX; 0 for the residue where there is one. Places before the grid are negative.
        """
        cell, within = divided(index, self.tile)
        own = []
        for side in self.sides[::-1]:
            within, at = divided(within, side)
            own.append(at)
        for number, (tiles, side, lead) in enumerate(zip(self.tiles[::-1], self.sides[::-1], self.leads[::-1])):
            if tiles > 1:
                cell, at = divided(cell, tiles)
                own[number] = own[number] + at * side
            own[number] = own[number] - lead if lead else own[number]
        residues: list[Any] = []
        for axis in self.grid[::-1]:
            residue = 0
            if axis.dilation > 1:
                cell, residue = divided(cell, axis.dilation)
            residues.append(residue)
        return list(zip(residues[::-1], own[::-1], strict=True))

    def finer(self, block: int) -> tuple[int, ...] | None:
        """The sides of the boxes that consecutive blocks of ``block`` tokens are, or of tiles where blocks are whole
        tiles; None where they are neither.
        """
        if block % self.tile == 0:
            return self.sides
        if self.tile % block:
            return None
        sides = []
        for side in self.sides[::-1]:
            sides.append(min(side, block))
            block //= sides[-1]
        return tuple(sides[::-1])


@dataclasses.dataclass(frozen=True)
class Neighborhood(Pattern):
    """The keys of each query of a grid, by their indices in two orders.

    Attributes:
      queries, keys: the orders, of the same grid.
      blocks: numbers of queries and of keys in the blocks for which the orders were chosen.
    """

    queries: Order
    keys: Order
    blocks: tuple[int, int]

    def __call__(self, q: Any, k: Any) -> Any:
        parts: list[Any] = []
        of_axes = zip(self.queries.grid, self.queries.places(q), self.keys.places(k), strict=True)
        for axis, (residue, own), (other, key) in of_axes:
            start, stop = axis.span(own, axis.count(residue))
            xp: Any = np if isinstance(q, np.ndarray) else jnp
            parts += [key >= (start if axis.shifted or axis.causal else xp.maximum(start, 0)), key < stop]
            if axis.dilation > 1:
                parts.append(residue == other)
        return functools.reduce(operator.and_, parts)

    def cover(self, q_length: int, k_length: int, block_q: int, block_k: int) -> tuple[np.ndarray, np.ndarray] | None:
        """As for every mask, by arithmetic on each axis. Tokens that fill tiles are no queries here."""
        fine_q, fine_k = self.queries.finer(block_q), self.keys.finer(block_k)
        if fine_q is None or fine_k is None or (q_length, k_length) != (self.queries.length, self.keys.length):
            return None
        parts = []
        for number, axis in enumerate(self.queries.grid):
            tiles_q, tiles_k = self.queries.tiles[number], self.keys.tiles[number]
            side_q, side_k = fine_q[number], fine_k[number]
            of_q, of_k = self.queries.sides[number] // side_q, self.keys.sides[number] // side_k  # boxes of a tile
            pairs = np.zeros((2, axis.dilation, tiles_q * of_q, axis.dilation, tiles_k * of_k), bool)
            at = np.arange(tiles_k * of_k)
            for residue in range(min(axis.dilation, axis.length)):
                found = axis.reach(int(axis.count(residue)), side_q, side_k, self.keys.leads[number])
                for kind, (first, stop) in enumerate((found[:2], found[2:])):
                    pairs[kind, residue, : len(first), residue] = (at >= first[:, None]) & (at < stop[:, None])
            parts.append(pairs.reshape(2, axis.dilation, tiles_q, of_q, axis.dilation, tiles_k, of_k))
        order = [6 * axis + part for side in (0, 3) for part in range(side, side + 3) for axis in range(len(parts))]
        rows, columns = block_q // math.prod(fine_q), block_k // math.prod(fine_k)
        some, every = (
            functools.reduce(np.logical_and.outer, (part[kind] for part in parts))
            .transpose(order)
            .reshape(self.queries.length // math.prod(fine_q), -1)
            for kind in range(2)
        )
        return _joined(some, rows, columns, False).any((1, 3)), _joined(every, rows, columns, True).all((1, 3))

    @functools.cached_property
    def _some(self) -> np.ndarray:
        return np.asarray(blocks.cover(self, self.queries.length, self.keys.length, *self.blocks).some)

    @property
    def visits(self) -> int:
        """Number of pairs of blocks that are visited."""
        return int(self._some.sum())

    @property
    def entries(self) -> int:
        """Entries of the lists of key blocks of all query blocks, or of query blocks of all key blocks, as long as the
        longest each.
        """
        return max(some.shape[0] * int(some.sum(1).max()) for some in (self._some, self._some.T))


def _joined(boxes: np.ndarray, rows: int, columns: int, after: bool) -> Any:
    """A summary of boxes, (blocks, rows, blocks, columns) for blocks of ``rows`` and of ``columns`` boxes. Queries
    after the end count as ``after``, keys there are not attended to.
    """
    boxes = np.pad(boxes, ((0, -boxes.shape[0] % rows), (0, 0)), constant_values=after)
    boxes = np.pad(boxes, ((0, 0), (0, -boxes.shape[1] % columns)))
    return boxes.reshape(boxes.shape[0] // rows, rows, -1, columns)


def _power(n: int) -> int:
    return 1 << (n - 1).bit_length()


def _sides(grid: tuple[Axis, ...], block: int) -> Iterator[tuple[int, ...]]:
    """The boxes of ``block`` tokens with powers of two as sides, or the largest that the grid can fill."""
    most = [_power(-(-axis.length // axis.dilation)) for axis in grid]
    if math.prod(most) <= block:
        yield tuple(most)
        return
    choices = [[1 << bits for bits in range(side.bit_length())] for side in most]
    yield from (sides for sides in itertools.product(*choices) if math.prod(sides) == block)


@functools.lru_cache(4096)
def _lead(axis: Axis, queries: int, keys: int) -> tuple[int, int]:
    """The start of the tiles of keys with which fewest pairs of tiles are visited, and their number.

    The number changes only where a tile of keys begins or ends as the reach of a tile of queries does.
    """
    leads = {0}
    for count in axis.residues:
        found = axis.reach(count, queries, 1)
        leads |= {int(edge) for edge in np.unique(np.concatenate([-found.first % keys, -found.stop % keys]))}
    return min(((lead, axis.visits(queries, keys, lead)) for lead in sorted(leads)), key=operator.itemgetter(1))


@functools.lru_cache(256)
def neighborhood(
    grid: tuple[Axis, ...], sizes: tuple[tuple[int, int], ...], most: int | None = None
) -> Neighborhood:
    """The mask with the orders of fewest pairs, for blocks of one of ``sizes``, (queries, keys) each, whose lists have
    at most ``most`` entries, or else the fewest. Cached, because every layer of a model needs the same.
    """
    found = []
    for block_q, block_k in sizes:
        best: tuple[float, Neighborhood] | None = None
        for sides_q, sides_k in itertools.product(_sides(grid, block_q), _sides(grid, block_k)):
            leads, visits = zip(
                *(_lead(axis, *sides) for axis, *sides in zip(grid, sides_q, sides_k, strict=True)), strict=True
            )
            number = math.prod(visits)
            if best is None or number < best[0]:
                mask = Neighborhood(Order(grid, sides_q, (0,) * len(grid)), Order(grid, sides_k, leads), (0, 0))
                best = number, mask
        assert best is not None
        mask = dataclasses.replace(best[1], blocks=(block_q, block_k))
        excess = 0 if most is None else max(mask.entries - most, 0)
        found.append(((excess, mask.visits * (block_q * block_k + STEP)), mask))
    return min(found, key=operator.itemgetter(0))[1]


def shapes(call: NeighborhoodCall, mask: Neighborhood) -> AttentionCall:
    """As :func:`as_attention`, with shapes in place of arrays: what an objection reads."""

    def ordered(x: Any, order: Order) -> Any:
        return jax.ShapeDtypeStruct((x.shape[0], order.length, *x.shape[-2:]), x.dtype)

    seen: Any = None
    if call.mask is not None:
        seen = jax.ShapeDtypeStruct((call.mask.shape[0], 1, 1, mask.keys.length), jnp.bool_)
    q, k, v = ordered(call.q, mask.queries), ordered(call.k, mask.keys), ordered(call.v, mask.keys)
    return AttentionCall(q, k, v, mask=seen, pattern=mask, scale=call.scale, finite=True)


def as_attention(call: NeighborhoodCall, mask: Neighborhood) -> AttentionCall:
    """The call of attention on tokens in the orders of ``mask``. What masked keys hold, and queries that attend to
    nothing, becomes 0.
    """
    q, k, v, seen = call.q, call.k, call.v, call.mask
    if seen is not None:
        q = jnp.where(_seeing(seen, call.grid)[..., None, None], q, 0)
        k, v = (jnp.where(seen[..., None, None], x, 0) for x in (k, v))
        seen = mask.keys.ordered(seen)[:, None, None]
    q, k, v = mask.queries.ordered(q), mask.keys.ordered(k), mask.keys.ordered(v)
    return AttentionCall(q, k, v, mask=seen, pattern=mask, scale=call.scale, finite=True)


def _seeing(mask: jax.Array, grid: tuple[Axis, ...]) -> jax.Array:
    """Which queries attend to a key that ``mask`` (batch or 1, *grid) allows: one axis after the other, as a window is
    a box.
    """
    for number, axis in enumerate(grid, 1):
        real = (axis.keys >= 0).reshape(*axis.keys.shape, *(1,) * (len(grid) - number))
        mask = (jnp.take(mask, np.maximum(axis.keys, 0), number) & real).any(number + 1)
    return mask
