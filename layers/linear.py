"""The linear layer and the table of embeddings, in the forms of their products that compilers do well.

Over several axes of rows, XLA's CPU compiler copies transposes of input and gradient in front of the
product that is the kernel's gradient; over one axis it needs none (MaxViT's gradient: 1.4 times as fast).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from layers.initializers import InitializerSpec, create_initializer, lecun_normal, zeros
from pallas_kernels import sequence


class Linear(nnx.Linear):
    """``nnx.Linear``: the same parameters, the same function."""

    def __init__(
        self, in_features: int, out_features: int, *, kernel_init: InitializerSpec = lecun_normal, bias_init: InitializerSpec = zeros, rngs: nnx.Rngs, **options: Any
    ):
        """Further options are those of ``nnx.Linear``."""
        inits = {"kernel_init": create_initializer(kernel_init), "bias_init": create_initializer(bias_init)}
        super().__init__(in_features, out_features, rngs=rngs, **inits, **options)

    def __call__(self, inputs: jax.Array, *args: Any, **kwargs: Any) -> jax.Array:
        """Maps (..., in_features) to (..., out_features)."""
        # Rows and tokens that are both split over devices can't become one axis without being gathered.
        if inputs.ndim < 3 or args or kwargs or sequence.is_split():
            return super().__call__(inputs, *args, **kwargs)
        return super().__call__(inputs.reshape(-1, inputs.shape[-1])).reshape(*inputs.shape[:-1], -1)


class Embed(nnx.Embed):
    """``nnx.Embed``: the same parameters, the same functions."""

    def attend(self, query: jax.Array, *args: Any, **kwargs: Any) -> jax.Array:
        """Maps (..., features) to logits (..., num_embeddings): products with every embedding."""
        if args or kwargs:
            return super().attend(query, *args, **kwargs)
        # No table.T: for a single token, XLA's newest CPU compiler would copy the transposed table first.
        query, table = self.promote_dtype((query, self.embedding[...]), dtype=self.dtype)
        return jnp.einsum("...d,vd->...v", query, table)
