"""Parameters shared by many rows: broadcast or looked up before they are cast to the dtype of the computation.

The gradient of a broadcast is a sum over all rows, and that of a lookup a sum over all rows that read the same entry,
taken in the dtype of the array that was broadcast. In bfloat16, with 8 bits of significand, a sum of equal numbers
stops growing at 256 of them. So the parameter is widened first and cast down last, and its gradient is summed in
float32. Where everything is float32 nothing changes, and compilers fuse the conversions into their neighbors.
"""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp


def widened(parameter: jax.Array) -> jax.Array:
    """``parameter`` in float32, or in its own dtype if that is wider."""
    return parameter.astype(jnp.promote_types(parameter.dtype, jnp.float32))


def broadcast(parameter: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """``parameter`` broadcast to ``shape`` in ``dtype``; the gradient is summed in float32."""
    return jnp.broadcast_to(widened(parameter), shape).astype(dtype)


def lookup(table: jax.Array, indices: jax.Array, dtype: Any, *, beyond: Literal["clip", "fill"] = "clip") -> jax.Array:
    """Rows of ``table`` (entries, ...) at ``indices`` in ``dtype``; the gradient is summed in float32.

    An index beyond the table gives its last row, or NaN with ``beyond="fill"``.
    """
    return jnp.take(widened(table), indices, axis=0, mode=beyond).astype(dtype)
