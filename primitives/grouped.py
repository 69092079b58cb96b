"""Grouped matrix products, in which each group of rows has its own matrix, as in mixtures of experts.

The rows are in blocks of equal size, each of a single group. A loop over the blocks reads the matrix of each in place:
XLA's CPU compiler turns ``jax.lax.ragged_dot`` into a product of all rows with all matrices, and ``einsum`` with
gathered matrices copies a matrix for every block. The gradient of the matrices is accumulated in place too; in JAX's
own gradient of such a loop each step would add an array of all matrices that is zero except for one.
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
      matrices: (groups, in, out), of any dtype; the product is in the dtype of ``x``.
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
