"""Two passes for few heads: pieces of the sequence are processed in parallel from empty states, then each gets the
state after the preceding ones.

One pass has one program per head and 64 columns; with fewer of these than cores, most of the GPU would be idle.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.linear_attention.hopper_chunks import CHUNK, columns_of, padded_dim

# Streaming multiprocessors of an H100 or H200.
CORES = 132
# Chunks of a piece: with fewer, passing the states is a large part of the work.
SHORTEST = 8


def count(batch: int, length: int, heads: int, key_dim: int, value_dim: int) -> int:
    """Number of pieces of each sequence that fill the cores; 1 where one pass suffices."""
    programs = batch * heads * (padded_dim(value_dim) // columns_of(padded_dim(key_dim)))
    return max(1, min(CORES // programs, length // (SHORTEST * CHUNK)))


def run(
    one_pass: Callable[..., Any],
    pieces: int,
    scale: float,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    logs: jax.Array | None,
    state: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Runs ``one_pass(q, k, v, logs, state)`` in pieces.

    Args:
      one_pass: returns results (batch, length, heads, value_dim) and the last state.
      pieces: number of pieces of each sequence.
      scale: factor of the results.
      q, k: (batch, length, groups, key_dim).
      v: (batch, length, heads, value_dim).
      logs: natural logarithms of decays, (batch, length, heads) or with key_dim last, or None.
      state: (batch, heads, key_dim, value_dim), before the first token.
    """
    batch, length, heads, _ = v.shape
    size = -(-length // (pieces * CHUNK)) * CHUNK

    def cut(x: jax.Array) -> jax.Array:
        x = jnp.pad(x, [(0, 0), (0, pieces * size - length)] + [(0, 0)] * (x.ndim - 2))
        return x.reshape(batch * pieces, size, *x.shape[2:])

    def by_piece(x: jax.Array) -> jax.Array:
        return jnp.moveaxis(x.reshape(batch, pieces, *x.shape[1:]), 1, 0)

    q, k, v = cut(q), cut(k), cut(v)
    logs = None if logs is None else cut(logs)
    out, ends = one_pass(q, k, v, logs, jnp.zeros((batch * pieces, *state.shape[1:]), state.dtype))
    queries = jnp.repeat(q, heads // q.shape[2], axis=2).astype(state.dtype)
    left = jnp.ones((batch * pieces, heads, 1), state.dtype)
    if logs is not None:
        since = jnp.exp(jnp.cumsum(logs if logs.ndim == 4 else logs[..., None], axis=1))
        queries, left = queries * since, since[:, -1]
    last, before = lax.scan(lambda s, x: (x[0][..., None] * s + x[1], s), state, (by_piece(left), by_piece(ends)))
    before = jnp.moveaxis(before, 0, 1).reshape(ends.shape)
    out = (out + scale * jnp.einsum("blhk,bhkv->blhv", queries, before)).astype(out.dtype)
    return out.reshape(batch, pieces * size, heads, -1)[:, :length], last
