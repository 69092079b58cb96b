"""What the Hopper kernels of recurrences share: tokens in chunks of 64, the rows of one wgmma, and how a program's
arrays lie in shared memory.
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
# Chunks between the states that the gradient of the decays meets at: sums over longer segments lose what cancels in
# them.
SEGMENT = 16


def whole(x: jax.Array, dim: int) -> jax.Array:
    """(batch, length, heads, ...) with zeros up to whole chunks and ``dim``: they change no state."""
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % CHUNK), (0, 0), (0, dim - x.shape[3])))


def as_read(state: jax.Array) -> jax.Array:
    """A state as products read it, rounded to 16 bits: sums that cancel against it are exact only then."""
    return state.astype(jnp.bfloat16).astype(jnp.float32)


def padded_dim(dim: int) -> int:
    """What a dim is filled up to: whole tiles of 64."""
    return max(64, -(-dim // 64) * 64)


def columns_of(keys: int) -> int:
    """Value columns of a program: its state, keys x columns in float32, stays in the registers of one warpgroup."""
    return 64 if keys <= 128 else 32


def tile(width: int, *shape: int, dtype: Any = jnp.bfloat16) -> Any:
    """Shared memory for matrices of programs ``width`` columns wide: products want operands swizzled alike."""
    return hopper.tiled(shape, dtype, min(width, 128 // jnp.dtype(dtype).itemsize))


def by_row(reference: Any) -> jax.Array:
    """A number for each row of what a warpgroup holds."""
    return hopper.load(reference, plgpu.Layout.WGMMA.reduce(1))


def across(x: jax.Array, columns: int) -> jax.Array:
    """A number per row, for all columns."""
    return lax.broadcast_in_dim(x, (x.shape[0], columns), (0,))
