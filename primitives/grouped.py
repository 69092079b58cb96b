"""Products of groups of rows with matrices of their own, as experts have them.

The rows are in blocks of one size, each of one group. A loop over the blocks reads the matrix of each in place: XLA's
CPU compiler makes of ``jax.lax.ragged_dot`` a product of all rows with all matrices, and of ``einsum`` with gathered
matrices a copy of each for every block. The gradient of the matrices is summed in place too, which that of such a loop,
made by JAX, is not: there each step adds an array of all matrices, zeros but for one.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from primitives.differentiation import differentiable


@differentiable()
def grouped_product(x: jax.Array, matrices: jax.Array, group: jax.Array) -> jax.Array:
    """``x[n] @ matrices[group[n]]`` for each block n.

    Args:
      x: (blocks, rows, in).
      matrices: (groups, in, out), of any dtype; the product is in that of ``x``.
      group: int32 (blocks,), the group of each block's rows.

    Returns:
      (blocks, rows, out) of the dtype of ``x``.
    """
    return jax.lax.map(lambda block: block[0] @ _of(matrices, block[1], x.dtype), (x, group))


def _of(matrices: jax.Array, group: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
    return jax.lax.dynamic_index_in_dim(matrices, group, keepdims=False).astype(dtype)


def _forward(
    x: jax.Array, matrices: jax.Array, group: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array, jax.Array]]:
    return grouped_product.function(x, matrices, group), (x, matrices, group)


def _backward(residuals: tuple[jax.Array, jax.Array, jax.Array], dy: jax.Array) -> tuple[jax.Array, jax.Array, None]:
    x, matrices, group = residuals
    dx = jax.lax.map(lambda block: block[0] @ _of(matrices, block[1], dy.dtype).T, (dy, group))
    wide = jnp.promote_types(matrices.dtype, jnp.float32)

    def add(sums: jax.Array, block: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        rows, cotangents, index = block
        return sums.at[index].add(jnp.matmul(rows.T, cotangents, preferred_element_type=wide)), None

    sums, _ = jax.lax.scan(add, jnp.zeros(matrices.shape, wide), (x, dy, group))
    return dx, sums.astype(matrices.dtype), None


grouped_product.define(_forward, _backward)
