"""Relative position tables: values that attention adds to a logit, or by which it multiplies a weight, as a function of
key position minus query position.

    index = clip(key - query - origin, 0, span - 1)

With indices as positions the values form Toeplitz matrices, which are made from a table by shifting rows, in the
forward and the backward pass, without gathering a matrix; for other positions they are gathered. Memory besides the
logits is linear in the table.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


def origin(table: jax.Array, given: int | None) -> int:
    """The offset of the first entry of ``table`` (heads, span, ...)."""
    return -(table.shape[1] // 2) if given is None else given


def spread(table: jax.Array, first: int, q_start: Any, k_start: Any, queries: int, keys: int) -> jax.Array:
    """The entries for consecutive queries and keys: (..., span) to (..., queries, keys).

    Args:
      table: (..., span), whose last axis is the offset.
      first: the offset of the table's first entry.
      q_start, k_start: positions of the first query and key.
      queries, keys: their numbers.
    """
    length = queries + keys
    offsets = k_start - q_start + jnp.arange(length) - (queries - 1)  # ascending from the last query's to its first key
    line = jnp.take(table, jnp.clip(offsets - first, 0, table.shape[-1] - 1), axis=-1)
    line = jnp.roll(line, -(queries - 1), axis=-1)  # from offset 0 on; negative ones are at the end
    tiled = jnp.broadcast_to(line[..., None, :], (*line.shape[:-1], queries, length)).reshape(*line.shape[:-1], -1)
    return tiled[..., : queries * (length - 1)].reshape(*line.shape[:-1], queries, length - 1)[..., :keys]


def shifted(products: jax.Array) -> jax.Array:
    """Products of queries with all offsets, (..., queries, queries + keys), to those with the offset of each key: (...,
    queries, keys).

    The offsets ascend from that of the last query to the first key.
    """
    queries, length = products.shape[-2:]
    flat = products.reshape(*products.shape[:-2], -1)[..., queries - 1 :]
    flat = jnp.pad(flat, [(0, 0)] * (flat.ndim - 1) + [(0, max(queries * (length - 1) - flat.shape[-1], 0))])
    return flat[..., : queries * (length - 1)].reshape(*flat.shape[:-1], queries, length - 1)[..., : length - queries]


def index(table: jax.Array, first: int, q_positions: jax.Array, k_positions: jax.Array) -> jax.Array:
    """The table indices for positions (batch or 1, length): int (batch or 1, queries, keys)."""
    offsets = k_positions[:, None, :] - q_positions[:, :, None]
    return jnp.clip(offsets - first, 0, table.shape[1] - 1)
