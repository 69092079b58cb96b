"""Pooling tokens into one vector by attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from layers.attention.multi_head import MultiHeadAttention
from layers.extra_tokens import repeated
from layers.initializers import truncated_normal
from layers.mlp import MLP, gelu
from layers.module import Module
from layers.norm import Norm, create_norm
from layers.tokens import Tokens


class AttentionPool(Module):
    """One learned query attends to all tokens, then an MLP with a residual.

    Scaling Vision Transformers (Zhai et al., 2022), the "MAP" head.
    """

    undecayed = ("latent",)

    def __init__(
        self,
        features: int,
        num_heads: int,
        mlp_ratio: float,
        *,
        norm: Norm = "layer",
        activation: Callable[[jax.Array], jax.Array] = gelu,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        common = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.latent = nnx.Param(truncated_normal(features**-0.5)(rngs.params(), (1, features), param_dtype))
        self.attention = MultiHeadAttention(features, num_heads=num_heads, context_features=features, **common)
        self.norm = create_norm(norm, features, **common)
        self.mlp = MLP(features, int(features * mlp_ratio), activation=activation, **common)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (batch, tokens, features) to (batch, features)."""
        y = self.attention(repeated(self.latent[...], x.shape[0], x.dtype), Tokens(context=x))
        return (y + self.mlp(self.norm(y)))[:, 0]
