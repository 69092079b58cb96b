"""Feature maps phi of linear attention: phi(q) . phi(k) replaces the exp(q . k) of softmax attention.

    elu+1               elu(x) + 1                          Katharopoulos et al., 2020 (arXiv:2006.16236), eq. 7
    silu+0.5            (silu(x) + 0.5) / |silu(x) + 0.5|   LION (Afzal et al., 2025, arXiv:2502.16249)
    identity, relu, sigmoid, silu, exp
    positive_random   exp(W x' - |x'|^2 / 2) / sqrt(m)   Performer (Choromanski et al., 2021, arXiv:2009.14794), lemma 1

x' = x / head_dim^(1/4), so that the expectation of phi(q) . phi(k) over W with standard normal rows is exp(q . k /
sqrt(head_dim)). All of them map (..., head_dim) to (..., features) and act on the last axis alone.

Exponential features of long vectors overflow or underflow. Their maps have a method ``logs`` too, the logarithms of the
features. A quotient of sums of phi(q) . phi(k) does not change if each query is divided by a number and each feature of
all keys by another, which :class:`layers.attention.linear.LinearAttention` does: divided by their largest values, the
features of keys, and of queries times these values, are at most 1, and some of them are 1
(:func:`queries_over_largest`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import nnx

from layers.broadcast import widened
from layers.initializers import normal, orthogonal
from layers.module import Module, Statistic
from primitives.exponential import silu
from suggestions import near

FeatureMap = Callable[[jax.Array], jax.Array]
FeatureMapSpec = str | Mapping[str, Any] | FeatureMap
"""A name, ``{"name": ..., **options}``, or a function of the last axis."""


@runtime_checkable
class ExponentialFeatures(Protocol):
    """A feature map whose features are exponential functions."""

    def __call__(self, x: jax.Array, /) -> jax.Array:
        """Maps (..., head_dim) to (..., features)."""
        ...

    def logs(self, x: jax.Array, /) -> jax.Array:
        """The logarithms of the features, less any constant: (..., features), at least float32."""
        ...


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


def positive_random_logs(x: jax.Array, projection: jax.Array) -> jax.Array:
    """W x - |x|^2 / 2, the logarithms of m positive random features times sqrt(m).

    Args:
      x: (..., features).
      projection: W, (m, features).

    Returns:
      (..., m), at least float32.
    """
    x = widened(x)
    return jnp.einsum("...d,md->...m", x, projection) - jnp.sum(x * x, -1, keepdims=True) / 2


def positive_random_features(x: jax.Array, projection: jax.Array) -> jax.Array:
    """exp(W x - |x|^2 / 2) / sqrt(m): E[phi(x) . phi(y)] = exp(x . y) over W with standard normal rows.

    Arguments and result are those of :func:`positive_random_logs`.
    """
    return jnp.exp(positive_random_logs(x, projection)) * len(projection) ** -0.5


def queries_over_largest(asks: jax.Array, largest: jax.Array) -> jax.Array:
    """The features of queries for keys whose features were divided by their largest values, up to a factor per query:
    exp(asks + M - the maximum of asks + M over the features).

    Args:
      asks: the logarithms of the queries' features, (..., features).
      largest: M, the maximum of the logarithms over the keys that a query sees, broadcastable; -inf if it sees none.

    Returns:
      (..., features), at most 1; 0 if there are no keys.
    """
    joint = asks + largest
    top = jax.lax.stop_gradient(joint.max(-1, keepdims=True))
    return jnp.exp(joint - jnp.where(jnp.isneginf(top), 0, top))


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

    def logs(self, x: jax.Array) -> jax.Array:
        """The logarithms of the features times sqrt(features), (..., features)."""
        return positive_random_logs(x * self.scale, self.projection[...])


@dataclasses.dataclass(frozen=True)
class Exponential:
    """exp(x)."""

    def __call__(self, x: jax.Array) -> jax.Array:
        """exp(x) in x's dtype."""
        return jnp.exp(x)

    def logs(self, x: jax.Array) -> jax.Array:
        """x itself, at least float32."""
        return widened(x)


FEATURE_MAPS: dict[str, Any] = {
    "elu+1": elu_plus_one,
    "exp": Exponential(),
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
