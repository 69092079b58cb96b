"""Feature maps phi of linear attention: phi(q) . phi(k) replaces the exp(q . k) of softmax attention.

    elu+1               elu(x) + 1                          Katharopoulos et al., 2020 (arXiv:2006.16236), eq. 7
    silu+0.5            (silu(x) + 0.5) / |silu(x) + 0.5|   LION (Afzal et al., 2025, arXiv:2502.16249)
    identity, relu, sigmoid, silu, exp
    positive_random   exp(W x' - |x'|^2 / 2) / sqrt(m)   Performer (Choromanski et al., 2021, arXiv:2009.14794), lemma 1

x' = x / head_dim^(1/4), so that the expectation of phi(q) . phi(k) over W with standard normal rows is exp(q . k /
sqrt(head_dim)). All of them map (..., head_dim) to (..., features) and act on the last axis alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from layers.initializers import normal, orthogonal
from layers.module import Module, Statistic
from primitives.exponential import silu
from suggestions import near

FeatureMap = Callable[[jax.Array], jax.Array]
FeatureMapSpec = str | Mapping[str, Any] | FeatureMap
"""A name, ``{"name": ..., **options}``, or a function of the last axis."""


def elu_plus_one(x: jax.Array) -> jax.Array:
    """elu(x) + 1: x + 1 above 0, e^x below, and not the sum of e^x - 1 and 1, which keeps few digits of a small e^x."""
    return jnp.where(x > 0, x + 1, jnp.exp(jnp.where(x > 0, 0, x)))


def unit_silu(x: jax.Array) -> jax.Array:
    """silu(x) + 0.5 (..., features), divided by its norm; positive, as silu is above -0.28."""
    y = silu(x.astype(jnp.promote_types(x.dtype, jnp.float32))) + 0.5
    return (y * jax.lax.rsqrt(jnp.sum(jnp.square(y), -1, keepdims=True))).astype(x.dtype)


def identity(x: jax.Array) -> jax.Array:
    """x itself."""
    return x


def positive_random_features(x: jax.Array, projection: jax.Array) -> jax.Array:
    """exp(W x - |x|^2 / 2) / sqrt(m): E[phi(x) . phi(y)] = exp(x . y) over W with standard normal rows.

    Args:
      x: (..., features).
      projection: W, (m, features).

    Returns:
      (..., m), at least float32.
    """
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    logits = jnp.einsum("...d,md->...m", x, projection) - jnp.sum(x * x, -1, keepdims=True) / 2
    return jnp.exp(logits) * len(projection) ** -0.5


class PositiveRandomFeatures(Module):
    """:func:`positive_random_features` of x / head_dim^(1/4).

    The rows of the projection are sampled once and not trained: orthogonal with norm sqrt(head_dim) if there are at
    most head_dim of them, otherwise independent standard normal. Statistic: ``projection`` (features, head_dim).
    """

    def __init__(self, head_dim: int, *, features: int | None = None, rngs: nnx.Rngs):
        """``features``: m, by default head_dim.

        Raises:
          ValueError: fewer than one feature.
        """
        count = head_dim if features is None else features
        if count < 1:
            raise ValueError(f"random features must be at least 1, got {count}")
        draw = orthogonal(head_dim**0.5) if count <= head_dim else normal(1.0)
        self.projection = Statistic(draw(rngs.params(), (count, head_dim), jnp.float32))
        self.scale = head_dim**-0.25

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (..., head_dim) to (..., features)."""
        return positive_random_features(x * self.scale, self.projection[...])


FEATURE_MAPS: dict[str, Any] = {
    "elu+1": elu_plus_one,
    "exp": jnp.exp,
    "identity": identity,
    "relu": jax.nn.relu,
    "sigmoid": jax.nn.sigmoid,
    "silu": silu,
    "silu+0.5": unit_silu,
    "positive_random": PositiveRandomFeatures,
}


def create_feature_map(spec: FeatureMapSpec, head_dim: int, *, rngs: nnx.Rngs) -> FeatureMap:
    """Makes the feature map of ``spec`` for heads of ``head_dim`` features; a function is returned unchanged.

    Raises:
      ValueError: an unknown name, or options for a map that has none.
    """
    if callable(spec):
        return spec
    options = {"name": spec} if isinstance(spec, str) else dict(spec)
    name = options.pop("name", None)
    if name not in FEATURE_MAPS:
        raise ValueError(
            f"unknown feature map {name!r}{near(str(name), FEATURE_MAPS)}; known: {', '.join(FEATURE_MAPS)}, or a "
            f"function"
        )
    made = FEATURE_MAPS[name]
    if isinstance(made, type):
        return made(head_dim, **options, rngs=rngs)
    if options:
        raise ValueError(f"the feature map {name!r} has no options, got {', '.join(options)}")
    return made
