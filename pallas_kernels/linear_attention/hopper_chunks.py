"""Shared parts of the Hopper kernels of recurrences: chunks of 64 tokens, the rows of one wgmma, and the layout of a
program's arrays in shared memory.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels import hopper

CHUNK = 64
# Chunks in flight.
STAGES = 2
# A decay of 2^-150 is 0 in float32: stronger decays are clipped here, so that sums over a chunk stay exact to 2^-11.
FORGOTTEN = -150.0
# Chunks between the stored states from which the gradient of the decays is computed: longer sums lose precision to
# cancellation.
SEGMENT = 16


def whole(x: jax.Array, dim: int) -> jax.Array:
    """Pads (batch, length, heads, dim) with zeros, which do not change the state, to whole chunks and to ``dim``
    features.
    """
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % CHUNK), (0, 0), (0, dim - x.shape[3])))


def as_read(state: jax.Array) -> jax.Array:
    """A state rounded to 16 bits, as products read it, so that sums that cancel against it are exact."""
    return state.astype(jnp.bfloat16).astype(jnp.float32)


def padded_dim(dim: int) -> int:
    """A number of features, padded to whole tiles of 64."""
    return max(64, -(-dim // 64) * 64)


def columns_of(keys: int) -> int:
    """Value columns of a program, whose state (keys x columns, float32) stays in the registers of one warpgroup."""
    return 64 if keys <= 128 else 32


def tile(width: int, *shape: int, dtype: Any = jnp.bfloat16) -> Any:
    """Shared memory for matrices of programs with ``width`` columns: the operands of products must have the same
    swizzle.
    """
    return hopper.tiled(shape, dtype, min(width, 128 // jnp.dtype(dtype).itemsize))


def by_row(reference: Any) -> jax.Array:
    """Loads one number for each row of a product in registers."""
    return hopper.load(reference, plgpu.Layout.WGMMA.reduce(1))


def across(x: jax.Array, columns: int) -> jax.Array:
    """Broadcasts one number per row to all columns."""
    return lax.broadcast_in_dim(x, (x.shape[0], columns), (0,))
