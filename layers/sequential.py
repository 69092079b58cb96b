"""Layers applied one after another."""

from __future__ import annotations

import jax
from flax import nnx


class Sequential(nnx.List):
    """Layers of one array argument, each applied to the output of the one before; a layer's name is its index."""

    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies all layers."""
        for layer in self:
            x = layer(x)
        return x
