"""Neighborhood attention by tiles: the queries of a tile attend to one box of keys, which contains all of their
windows.

Boxes overlap: keys are copied once for every tile that reads them. Each tile is a row of a batch for
:func:`pallas_kernels.attention`, whose kernels are used where they support it. Where that would be too many copies,
keys are gathered for some queries at a time, as for any mask of attention
(:mod:`pallas_kernels.neighborhood_attention.tiled`, :mod:`pallas_kernels.attention.lists`): memory is linear in the
number of tokens, whatever the window.
"""

from __future__ import annotations

import functools
import math
import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.attention import attention, lists
from pallas_kernels.attention import xla as of_attention
from pallas_kernels.neighborhood_attention import tiled
from pallas_kernels.neighborhood_attention.call import NeighborhoodCall
from pallas_kernels.neighborhood_attention.geometry import Axis, Tiles, tiles

QUERIES = 64
"""The approximate number of queries of a tile: with fewer, keys are copied more often; with more, more masked logits
are computed.
"""

COPIES = 32
"""Copies of each key, on average, above which boxes are not made: 13 x 13 tokens around each of a map take 6."""


def _sizes(grid: tuple[Axis, ...]) -> tuple[int, ...]:
    """Number of queries of a tile along each axis: as equal as the axes' lengths allow."""
    side = max(round(QUERIES ** (1 / len(grid))), 1)
    return tuple(min(side, -(-axis.length // axis.dilation)) for axis in grid)


def _taken(x: jax.Array, indices: list[np.ndarray]) -> jax.Array:
    """Gathers (batch, *grid, ...) to (batch * tiles, tokens of a tile, ...) by the indices (tiles, tokens) of each
    axis.
    """
    count = len(indices)
    for number, index in enumerate(indices):
        axis = 1 + 2 * number
        x = jnp.take(x, index.reshape(-1), axis).reshape(*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])
    order = (0, *range(1, 2 * count, 2), *range(2, 2 * count + 1, 2), *range(2 * count + 1, x.ndim))
    x = x.transpose(order)
    cells = math.prod(x.shape[: count + 1])
    return x.reshape(cells, -1, *x.shape[2 * count + 1 :])


def _returned(y: jax.Array, batch: int, cut: list[Tiles]) -> jax.Array:
    """The inverse of :func:`_taken` for queries."""
    count, shapes = len(cut), [tile.queries.shape for tile in cut]
    rest = y.shape[2:]
    y = y.reshape(batch, *(shape[0] for shape in shapes), *(shape[1] for shape in shapes), *rest)
    order = (
        [0]
        + [n for number in range(count) for n in (1 + number, 1 + count + number)]
        + list(range(2 * count + 1, y.ndim))
    )
    y = y.transpose(order).reshape(batch, *(math.prod(shape) for shape in shapes), *rest)
    for number, tile in enumerate(cut):
        y = jnp.take(y, tile.where, 1 + number)
    return y


def _together(parts: list[Any], combine: Any) -> Any:
    """Combines arrays (tiles, size, box) of each axis to one (all tiles, tokens of a tile, tokens of a box)."""
    count, spread = len(parts), []
    for number, part in enumerate(parts):
        shape = [1] * (3 * count)
        shape[number], shape[count + number], shape[2 * count + number] = part.shape
        spread.append(part.reshape(shape))
    whole = combine(spread)
    sizes = [[part.shape[n] for part in parts] for n in range(3)]
    return whole.reshape(*whole.shape[: whole.ndim - 3 * count], *(math.prod(size) for size in sizes))


def neighborhood_attention(call: NeighborhoodCall) -> tuple[jax.Array]:
    """The op."""
    batch = call.q.shape[0]
    cut = [tiles(axis, size) for axis, size in zip(call.grid, _sizes(call.grid), strict=True)]
    copies = math.prod(tile.keys.size / axis.length for tile, axis in zip(cut, call.grid, strict=True))
    if call.bias is None and copies > COPIES:
        order = tiled.neighborhood(call.grid, ((lists.CHUNK, lists.BLOCK),))
        out, _ = of_attention.attention(tiled.as_attention(call, order))
        return (order.queries.restored(out),)
    queries, keys = [tile.queries for tile in cut], [tile.keys for tile in cut]
    q, k, v = _taken(call.q, queries), _taken(call.k, keys), _taken(call.v, keys)
    # Made from small arrays of the axes, so that programs contain no large constants.
    allowed = _together(
        [jnp.asarray(tile.allowed) for tile in cut], lambda parts: functools.reduce(operator.and_, parts)
    )
    mask = jnp.broadcast_to(allowed, (batch, *allowed.shape))
    if call.mask is not None:
        seen = _taken(jnp.broadcast_to(call.mask, (batch, *call.mask.shape[1:])), keys)
        mask = mask & seen.reshape(batch, -1, 1, seen.shape[1])
    bias = None
    if call.bias is not None:
        table = call.bias
        bias = _together(
            [jnp.asarray(tile.offset) for tile in cut], lambda parts: table[(slice(None), *parts)]
        )  # (heads, tiles, queries, keys)
        bias = jnp.broadcast_to(jnp.moveaxis(bias, 1, 0), (batch, bias.shape[1], bias.shape[0], *bias.shape[2:]))
        bias = bias.reshape(-1, *bias.shape[2:])
    y = attention(q, k, v, mask=mask.reshape(-1, 1, *mask.shape[2:]), bias=bias, scale=call.scale)
    return (_returned(y, batch, cut),)


def scores(q: jax.Array, k: jax.Array, grid: tuple[Axis, ...]) -> jax.Array:
    """Products of each query with its keys: (batch, *grid, heads, neighbors), 0 for missing keys."""

    def one(place: jax.Array) -> jax.Array:
        near, real = _at(k, grid, place)
        return (
            jnp.einsum("b...hd,b...hd->b...h", q, near, preferred_element_type=jnp.promote_types(q.dtype, jnp.float32))
            * real
        )

    return jnp.moveaxis(jax.lax.map(jax.checkpoint(one), _places(grid)), 0, -1)


def average(weights: jax.Array, v: jax.Array, grid: tuple[Axis, ...]) -> jax.Array:
    """Sums of each query's values, multiplied by the weights: (batch, *grid, heads, value_dim) in float32 or wider."""
    wide = jnp.promote_types(v.dtype, jnp.float32)

    def step(total: jax.Array, given: Any) -> tuple[jax.Array, None]:
        weight, place = given
        near, real = _at(v, grid, place)
        return total + (weight * real).astype(wide)[..., None] * near.astype(wide), None

    zeros = jnp.zeros((*weights.shape[:-1], v.shape[-1]), wide)
    return jax.lax.scan(jax.checkpoint(step), zeros, (jnp.moveaxis(weights, -1, 0), _places(grid)))[0]


def _places(grid: tuple[Axis, ...]) -> jax.Array:
    """The index of each neighbor in the window of each axis: int (neighbors, axes)."""
    return jnp.asarray(
        np.stack(
            np.unravel_index(np.arange(math.prod(axis.window for axis in grid)), [axis.window for axis in grid]), -1
        )
    )


def _at(x: jax.Array, grid: tuple[Axis, ...], place: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The neighbor of every query at one index of the window, and whether it exists, bool (*grid, 1)."""
    real: Any = jnp.ones((1,) * len(grid), bool)
    for number, axis in enumerate(grid):
        index = jnp.asarray(axis.keys)[:, place[number]]
        x = jnp.take(x, jnp.maximum(index, 0), 1 + number)
        real = real & (index >= 0).reshape([-1 if n == number else 1 for n in range(len(grid))])
    return x, real[..., None]
