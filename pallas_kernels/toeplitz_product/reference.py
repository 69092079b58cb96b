"""The Toeplitz product as the product with the matrix."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pallas_kernels.toeplitz_product.call import ToeplitzCall


def matrix(call: ToeplitzCall) -> jax.Array:
    """The Toeplitz matrices, (groups, length, length): the coefficient with which a token (row) reads another
    (column).
    """
    length = call.x.shape[1]
    offset = jnp.arange(length)[:, None] - jnp.arange(length)
    seen = offset >= 0 if call.causal else jnp.full(offset.shape, True)
    place = jnp.where(seen, offset if call.causal else offset + length - 1, 0)
    return jnp.where(seen, call.kernel.T[:, place], 0)


def toeplitz_product(call: ToeplitzCall) -> tuple[jax.Array]:
    """The op."""
    by_group = call.x.reshape(*call.x.shape[:2], call.kernel.shape[1], -1)
    return (jnp.einsum("gts,bsgf->btgf", matrix(call), by_group, precision="highest").reshape(call.x.shape),)
