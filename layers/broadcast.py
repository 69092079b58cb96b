"""Parameters that many rows share: broadcast and looked up before they become as narrow as the computation.

The gradient of a broadcast is a sum over all rows that it went to, and that of a lookup a sum over all that looked
up the same entry; the sum is taken in the dtype of what was broadcast. In bfloat16, with 8 bits, a sum of equal
numbers stops growing at 256 of them. So the parameter is widened first and narrowed last, and the sum between is in
float32. Where everything is in float32 nothing changes, and compilers fuse the conversions into their neighbors.
"""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp


def widened(parameter: jax.Array) -> jax.Array:
    """``parameter``, at least in float32."""
    return parameter.astype(jnp.promote_types(parameter.dtype, jnp.float32))


def broadcast(parameter: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """``parameter`` broadcast to ``shape`` in ``dtype``, whose gradient is summed in float32."""
    return jnp.broadcast_to(widened(parameter), shape).astype(dtype)


def lookup(table: jax.Array, indices: jax.Array, dtype: Any, *, beyond: Literal["clip", "fill"] = "clip") -> jax.Array:
    """Rows of ``table`` (entries, ...) at ``indices`` in ``dtype``, whose gradient is summed in float32.

    An index beyond the table gives its last row, or with ``beyond="fill"`` not-a-number.
    """
    return jnp.take(widened(table), indices, axis=0, mode=beyond).astype(dtype)
