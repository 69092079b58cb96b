"""Squeeze-and-Excitation Networks (Hu et al., 2018, arXiv:1709.01507): channel gates from means over the map."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from layers.initializers import variance_scaling
from layers.linear import Linear
from layers.module import Module


class SqueezeExcite(Module):
    """``x * sigmoid(W2 f(W1 mean(x)))``, with the mean over rows and columns; ``hidden`` defaults to features / 16."""

    def __init__(
        self,
        features: int,
        hidden: int | None = None,
        *,
        activation: Callable[[jax.Array], jax.Array] = jax.nn.relu,
        kernel_init: Any = variance_scaling(2.0, "fan_out", "normal"),
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        common = {"kernel_init": kernel_init, "dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        hidden = max(features // 16, 1) if hidden is None else hidden
        self.squeeze = Linear(features, hidden, **common)
        self.excite = Linear(hidden, features, **common)
        self.activation = activation

    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """Maps (batch, height, width, features) to the same shape; the mean is over the tokens where ``mask`` (batch,
        height, width) is True.
        """
        if mask is None:
            mean = jnp.mean(x, axis=(1, 2))
        else:
            total = jnp.sum(
                jnp.where(mask[..., None], x, 0), axis=(1, 2), dtype=jnp.promote_types(x.dtype, jnp.float32)
            )
            mean = (total / jnp.maximum(jnp.sum(mask, axis=(1, 2)), 1)[:, None]).astype(x.dtype)
        gate = jax.nn.sigmoid(self.excite(self.activation(self.squeeze(mean))))
        return x * gate[:, None, None]
