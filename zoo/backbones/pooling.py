"""Pooling tokens into one vector: by name, and by attention."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from layers.attention.multi_head import MultiHeadAttention
from layers.extra_tokens import repeated
from layers.initializers import truncated_normal
from layers.mixer import without_padding
from layers.mlp import MLP, gelu
from layers.module import Module
from layers.norm import Norm, create_norm
from layers.tokens import Tokens
from suggestions import unknown

Pool = Callable[[jax.Array, jax.Array | None], jax.Array]
"""Maps (batch, length, features) and a mask (batch, length), True for real tokens or None, to (batch, features). What
padding holds does not matter."""


def first_token(x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """The first token, which is real: padding trails."""
    return x[:, 0]


def last_token(x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """The last real token; for a row without any, the first token."""
    if mask is None:
        return x[:, -1]
    places = jnp.arange(x.shape[1], dtype=jnp.int32)
    last = jnp.max(jnp.where(mask, places, 0), 1)
    return jnp.take_along_axis(x, last[:, None, None], 1)[:, 0]


def average_of_tokens(x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """The mean of the real tokens; zero for a row without any."""
    if mask is None:
        return x.mean(1)
    # Divided before the sum, which could overflow in float16.
    share = 1 / jnp.maximum(mask.sum(1, dtype=jnp.float32), 1)
    return jnp.sum(without_padding(x, mask) * share[:, None, None], 1).astype(x.dtype)


def sum_of_tokens(x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """The sum of the real tokens, added up in float32."""
    return jnp.sum(without_padding(x, mask), 1, dtype=jnp.promote_types(x.dtype, jnp.float32)).astype(x.dtype)


def greatest_of_tokens(x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """The maximum over the real tokens of each feature; zero for a row without any."""
    if mask is None:
        return x.max(1)
    found = jnp.max(x, 1, where=mask[..., None], initial=-jnp.inf)
    return jnp.where(mask.any(1)[:, None], found, 0).astype(x.dtype)


POOLS: Mapping[str, Pool] = {
    "token": first_token,
    "average": average_of_tokens,
    "max": greatest_of_tokens,
    "sum": sum_of_tokens,
    "last": last_token,
}
"""Pooling without parameters, by name."""


def create_pool(spec: str | Pool) -> Pool:
    """The pooling of a name in :data:`POOLS`, or ``spec`` itself if it is a function of tokens and mask.

    Raises:
      ValueError: an unknown name; similar ones are suggested.
    """
    if callable(spec):
        return spec
    if spec not in POOLS:
        raise ValueError(unknown("pooling", spec, POOLS))
    return POOLS[spec]


class AttentionPool(Module):
    """One learned query attends to all tokens, followed by an MLP with a residual connection.

    Scaling Vision Transformers (Zhai et al., 2022, arXiv:2106.04560), the "MAP" head.
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
