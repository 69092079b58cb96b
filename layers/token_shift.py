"""The token shift of RWKV (Peng et al., 2023, arXiv:2305.13048, section 3.1): each token sees the one before it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from layers.broadcast import broadcast
from layers.convolution import CausalConvolution


class TokenShift(CausalConvolution):
    """The token before each, zeros at the start of a document: a convolution over two tokens, without parameters."""

    def __init__(self, features: int, *, dtype: Any = None):
        self.features, self.kernel_size, self.dtype = features, 2, dtype

    def _cast(self, x: jax.Array) -> tuple[jax.Array, jax.Array, None]:
        x = x if self.dtype is None else x.astype(self.dtype)
        return x, jnp.zeros((2, 1, self.features), x.dtype).at[0].set(1), None


def shifted(x: jax.Array, before: jax.Array, weights: jax.Array) -> tuple[jax.Array, ...]:
    """x + (before - x) weight for each row of ``weights`` (count, features)."""
    difference = before - x
    return tuple(x + difference * broadcast(weight, x.shape, x.dtype) for weight in weights)
