"""Neighborhood attention as the equation, over a list of each query's keys, in float32 (float64 for float64 arrays)."""

from __future__ import annotations

import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.neighborhood_attention.call import NeighborhoodCall
from pallas_kernels.neighborhood_attention.geometry import Axis


def neighbors(x: jax.Array, grid: tuple[Axis, ...]) -> tuple[jax.Array, np.ndarray]:
    """The keys of each query, (batch, *grid, neighbors, ...), and which of them exist, bool (*grid, neighbors)."""
    lists = _lists(grid)
    real = functools.reduce(operator.and_, (at >= 0 for at in lists))
    return x[(slice(None), *(np.maximum(at, 0) for at in lists))], real


def _lists(grid: tuple[Axis, ...]) -> list[np.ndarray]:
    """The indices of each query's keys on every axis: int (*grid, neighbors) each, -1 for none."""
    count = len(grid)
    found = []
    for number, axis in enumerate(grid):
        shape = [1] * (2 * count)
        shape[number], shape[count + number] = axis.keys.shape
        whole = [other.length for other in grid] + [other.window for other in grid]
        found.append(np.broadcast_to(axis.keys.reshape(shape), whole).reshape(*whole[:count], -1))
    return found


def _offsets(keys: np.ndarray, number: int, axis: Axis) -> np.ndarray:
    """The indices of ``keys`` (*grid, neighbors) in a table of offsets along one axis, whose first entry is 1
    - window.
    """
    own = np.arange(axis.length).reshape([-1 if n == number else 1 for n in range(keys.ndim)])
    return np.clip((keys - own) // axis.dilation + axis.window - 1, 0, 2 * axis.window - 2)


def neighborhood_attention(call: NeighborhoodCall) -> tuple[jax.Array]:
    """The op."""
    wide = jnp.promote_types(call.q.dtype, jnp.float32)
    repeats = call.q.shape[-2] // call.k.shape[-2]
    (k, real), (v, _) = (neighbors(jnp.repeat(x.astype(wide), repeats, -2), call.grid) for x in (call.k, call.v))
    allowed = jnp.asarray(real)[None]
    if call.mask is not None:
        allowed = allowed & neighbors(call.mask, call.grid)[0]
    seen = allowed[..., None, None]
    k, v = jnp.where(seen, k, 0), jnp.where(seen, v, 0)  # 0 * NaN is NaN
    q = jnp.where(allowed.any(-1)[..., None, None], call.q.astype(wide), 0)
    logits = call.scale * jnp.einsum("b...hd,b...nhd->b...hn", q, k, precision="highest")
    if call.bias is not None:
        places = [
            _offsets(at, number, axis)
            for number, (at, axis) in enumerate(zip(_lists(call.grid), call.grid, strict=True))
        ]
        logits = logits + jnp.moveaxis(call.bias.astype(wide)[(slice(None), *places)], 0, -2)
    logits = jnp.where(allowed[..., None, :], logits, -jnp.inf)
    top = jax.lax.stop_gradient(jnp.max(logits, -1, keepdims=True))
    weights = jnp.exp(logits - jnp.where(top == -jnp.inf, 0.0, top))
    total = jnp.sum(weights, -1, keepdims=True)
    weights = weights / jnp.where(total == 0, 1.0, total)
    return (jnp.einsum("b...hn,b...nhd->b...hd", weights, v, precision="highest").astype(call.q.dtype),)
