"""Tables by offset: what attention adds to a logit, or multiplies a weight by, as a function of key position less query
position.

    index = clip(key - query - origin, 0, span - 1)

Positions that are indices make Toeplitz matrices, which are read from a table by shifts of rows, forward and backward,
with no gather of a matrix; other positions are gathered. Memory beside the logits is linear in the table.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


def origin(table: jax.Array, given: int | None) -> int:
    """The offset of a table's first entry; ``table`` (heads, span, ...)."""
    return -(table.shape[1] // 2) if given is None else given


def spread(table: jax.Array, first: int, q_start: Any, k_start: Any, queries: int, keys: int) -> jax.Array:
    """The entries for queries and keys that follow each other: (..., span) to (..., queries, keys).

    Args:
      table: its last axis is the offset, from ``first`` on.
      q_start, k_start: positions of the first query and key.
    """
    length = queries + keys
    offsets = k_start - q_start + jnp.arange(length) - (queries - 1)  # ascending from the last query's to its first key
    line = jnp.take(table, jnp.clip(offsets - first, 0, table.shape[-1] - 1), axis=-1)
    line = jnp.roll(line, -(queries - 1), axis=-1)  # from offset 0 on; negative ones are at the end
    tiled = jnp.broadcast_to(line[..., None, :], (*line.shape[:-1], queries, length)).reshape(*line.shape[:-1], -1)
    return tiled[..., : queries * (length - 1)].reshape(*line.shape[:-1], queries, length - 1)[..., :keys]


def shifted(products: jax.Array) -> jax.Array:
    """Products of queries with a line of offsets, (..., queries, queries + keys) ascending from the last query's first
    key, to those of each query with its own: (..., queries, keys)."""
    queries, length = products.shape[-2:]
    flat = products.reshape(*products.shape[:-2], -1)[..., queries - 1 :]
    flat = jnp.pad(flat, [(0, 0)] * (flat.ndim - 1) + [(0, max(queries * (length - 1) - flat.shape[-1], 0))])
    return flat[..., : queries * (length - 1)].reshape(*flat.shape[:-1], queries, length - 1)[..., : length - queries]


def index(table: jax.Array, first: int, q_positions: jax.Array, k_positions: jax.Array) -> jax.Array:
    """Which entries positions (batch or 1, length) read: int (batch or 1, queries, keys)."""
    offsets = k_positions[:, None, :] - q_positions[:, :, None]
    return jnp.clip(offsets - first, 0, table.shape[1] - 1)
