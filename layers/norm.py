"""Normalization layers by name, with statistics in float32 for any compute dtype."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn.dtypes import canonicalize_dtype

from layers.broadcast import widened
from layers.initializers import InitializerSpec, create_initializer, ones, zeros
from layers.module import Module, Statistic
from primitives.exponential import silu

# The two-pass variance: the one-pass form (E[x^2] - E[x]^2) cancels when the mean is large.
LayerNorm = functools.partial(nnx.LayerNorm, use_fast_variance=False, scale_init=ones, bias_init=zeros)
RMSNorm = functools.partial(nnx.RMSNorm, scale_init=ones)


def _statistics_wide(arrays: Any, *, dtype: Any = None, inexact: bool = True) -> Any:
    """Inputs in the compute dtype; statistics, scale and bias in float32: see :mod:`layers.broadcast`."""
    x, *shared = arrays
    dtype = canonicalize_dtype(*(a for a in arrays if a is not None), dtype=dtype, inexact=inexact)
    return x.astype(dtype), *(None if a is None else widened(a) for a in shared)


class BatchNorm(nnx.BatchNorm):
    """``nnx.BatchNorm`` with a default momentum of 0.9, computed in float32; parameters and statistics are the same."""

    def __init__(
        self,
        num_features: int,
        *,
        momentum: float = 0.9,
        scale_init: InitializerSpec = ones,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
        **options: Any,
    ):
        """Further options are those of ``nnx.BatchNorm``."""
        # Flax compiles an XLA program for the statistics of each size: make them for one feature, then replace them.
        common: dict[str, Any] = {"momentum": momentum, "use_fast_variance": False, "promote_dtype": _statistics_wide}
        super().__init__(1, **common, param_dtype=param_dtype, rngs=rngs, **options)
        self.num_features, shape = num_features, (num_features,)
        self.mean, self.var = Statistic(zeros(None, shape)), Statistic(ones(None, shape))
        if self.scale is not None:
            self.scale = nnx.Param(create_initializer(scale_init)(None, shape, param_dtype))
        if self.bias is not None:
            self.bias = nnx.Param(zeros(None, shape, param_dtype))

    def affine(self) -> tuple[jax.Array, jax.Array]:
        """Scale and offset of evaluation mode, ``scale * x + offset``, each float32 (features,).

        scale = gamma / sqrt(variance + epsilon);  offset = beta - mean scale
        """
        scale = jax.lax.rsqrt(widened(self.var[...]) + self.epsilon)
        scale = scale if self.scale is None else scale * widened(self.scale[...])
        offset = -widened(self.mean[...]) * scale
        return scale, offset if self.bias is None else offset + widened(self.bias[...])


def of_real(norm: Any, x: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Batch norm of ``x`` (..., features) with statistics over the tokens where ``mask`` (...) is True."""
    return norm(x) if mask is None else norm(x, mask=mask[..., None])


class ZeroCenteredRMSNorm(nnx.RMSNorm):
    """``x / rms(x) * (1 + scale)`` with a scale initialized to 0 (Gemma, arXiv:2403.08295): weight decay pulls the
    factor to 1, not to 0.
    """

    def __init__(self, num_features: int, *, rngs: nnx.Rngs, **options: Any):
        """Further options are those of ``nnx.RMSNorm``."""
        super().__init__(num_features, scale_init=zeros, promote_dtype=_one_more, rngs=rngs, **options)


class ZeroCenteredLayerNorm(nnx.LayerNorm):
    """LayerNorm without bias, with the factor 1 + scale and scale initialized to 0 (xLSTM, arXiv:2405.04517)."""

    def __init__(self, num_features: int, *, rngs: nnx.Rngs, **options: Any):
        """Further options are those of ``nnx.LayerNorm``."""
        fixed: dict[str, Any] = {"use_bias": False, "use_fast_variance": False, "promote_dtype": _one_more}
        super().__init__(num_features, scale_init=zeros, rngs=rngs, **fixed, **options)


def _one_more(arrays: Any, *, dtype: Any = None, inexact: bool = True) -> Any:
    """As :func:`_statistics_wide`, with a scale of 1 + the parameter."""
    x, scale, *bias = _statistics_wide(arrays, dtype=dtype, inexact=inexact)
    return x, 1 + scale, *bias


class GatedRMSNorm(Module):
    """``RMSNorm(x * f(gate))``, or ``RMSNorm(x) * f(gate)``, over each of ``groups`` equal parts of the features, in
    float32.

    Parameter ``scale`` (features,), with ``use_scale``.
    """

    def __init__(
        self,
        features: int,
        *,
        groups: int = 1,
        use_scale: bool = True,
        gated: Literal["before", "after"] = "before",
        activation: Callable[[jax.Array], jax.Array] = silu,
        epsilon: float = 1e-5,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Args:
        groups: number of parts of the features, each with its own statistics.
        use_scale: whether there is a ``scale``.
        gated: whether the gate is applied "before" or "after" the norm.
        activation: f.
        epsilon: added to the mean square.
        """
        del rngs  # unused: all layers have the same constructor arguments
        self.scale = nnx.Param(ones(None, (features,), param_dtype)) if use_scale else None
        self.groups, self.gated, self.activation, self.epsilon = groups, gated, activation, epsilon

    def __call__(self, x: jax.Array, gate: jax.Array | None) -> jax.Array:
        """Maps ``x`` and ``gate`` (..., features) to the same shape and x's dtype; without a gate it is RMSNorm."""
        y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        factor = 1 if gate is None else self.activation(gate.astype(y.dtype))
        y = y * factor if self.gated == "before" else y
        y = y.reshape(*x.shape[:-1], self.groups, -1)
        # Products of several projections can be beyond the square root of the largest number.
        size = jnp.where(jnp.max(jnp.abs(y), axis=-1, keepdims=True) > 2.0**50, 2.0**-75, 1)
        # Not rsqrt, whose derivative is a third power: it underflows where gated values are above 10^12.
        y = size * y / jnp.sqrt(jnp.mean(jnp.square(size * y), axis=-1, keepdims=True) + self.epsilon * size * size)
        y = y.reshape(x.shape)
        y = y if self.scale is None else y * self.scale[...].astype(y.dtype)
        return (y * factor if self.gated == "after" else y).astype(x.dtype)


class Affine(Module):
    """``scale * x + bias`` as a replacement of a norm, without statistics (ResMLP, Touvron et al., 2021,
    arXiv:2105.03404).
    """

    def __init__(self, num_features: int, *, dtype: Any = None, param_dtype: Any = jnp.float32, **options: Any):
        """It has the options of other norms and no use for them."""
        self.scale = nnx.Param(ones(None, (num_features,), param_dtype))
        self.bias = nnx.Param(zeros(None, (num_features,), param_dtype))
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (..., features) to the same shape."""
        dtype = self.dtype or jnp.promote_types(x.dtype, self.scale.dtype)
        return (x * widened(self.scale[...]) + widened(self.bias[...])).astype(dtype)


class GlobalResponseNorm(Module):
    """Normalizes channels by their relative norms: ``scale * x * n + bias + x`` with ``n_c = |x_c| / mean_c |x_c|`` and
    |x_c| the L2 norm over the map (ConvNeXt V2, Woo et al., 2023, arXiv:2301.00808, section 3.2).

    Parameters ``scale`` and ``bias`` (features,), initialized to 0.
    """

    def __init__(
        self,
        features: int,
        *,
        epsilon: float = 1e-6,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        del rngs  # unused: all layers have the same constructor arguments
        self.scale, self.bias = (nnx.Param(zeros(None, (features,), param_dtype)) for _ in range(2))
        self.epsilon, self.dtype = epsilon, dtype

    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """Maps (batch, height, width, features) to the same shape; norms are over the tokens where ``mask`` (batch,
        height, width) is True.
        """
        dtype = self.dtype or jnp.promote_types(x.dtype, self.scale.dtype)
        wide = x.astype(jnp.promote_types(dtype, jnp.float32))
        real = wide if mask is None else jnp.where(mask[..., None], wide, 0)
        squares = jnp.sum(jnp.square(real), axis=(1, 2), keepdims=True)
        zero = squares == 0  # sqrt has no finite gradient at 0: define it as 0
        length = jnp.where(zero, 0, jnp.sqrt(jnp.where(zero, 1, squares)))
        relative = length / (jnp.mean(length, axis=-1, keepdims=True) + self.epsilon)
        return (wide * (1 + widened(self.scale[...]) * relative) + widened(self.bias[...])).astype(dtype)


class UnitNorm(nnx.Module):
    """:func:`unit` as a norm, without parameters."""

    def __init__(self, num_features: int, *, rngs: nnx.Rngs, **options: Any):
        """It has the options of other norms and no use for them."""

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (..., features) to vectors of length 1."""
        return unit(x)


NORMS: dict[str, Callable[..., nnx.Module]] = {
    "layer": LayerNorm,
    "unbiased_layer": functools.partial(LayerNorm, use_bias=False),
    "rms": RMSNorm,
    "plain_layer": functools.partial(nnx.LayerNorm, use_fast_variance=False, use_scale=False, use_bias=False),
    "simple_rms": functools.partial(nnx.RMSNorm, use_scale=False),
    "zero_centered_rms": ZeroCenteredRMSNorm,
    "zero_centered_layer": ZeroCenteredLayerNorm,
    "batch": BatchNorm,
    "affine": Affine,
    "unit": UnitNorm,
}

Norm = str | Callable[..., nnx.Module]
"""A name in :data:`NORMS`, or a callable ``(features, *, dtype, param_dtype, rngs) -> module``."""


def create_norm(
    norm: Norm, features: int, *, dtype: Any = None, param_dtype: Any = jnp.float32, rngs: nnx.Rngs, **options: Any
) -> nnx.Module:
    """Makes the norm over the last axis.

    Raises:
      ValueError: an unknown name.
    """
    if isinstance(norm, str):
        if norm not in NORMS:
            raise ValueError(f"unknown norm {norm!r}; known: {', '.join(NORMS)}")
        norm = NORMS[norm]
    return norm(features, dtype=dtype, param_dtype=param_dtype, rngs=rngs, **options)


def unit(x: jax.Array) -> jax.Array:
    """``x / |x|`` over the last axis, computed in float32; a zero vector stays zero, with gradient 0."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    squares = jnp.sum(jnp.square(wide), axis=-1, keepdims=True)
    zero = squares < 1e-24
    return jnp.where(zero, 0, wide * jax.lax.rsqrt(jnp.where(zero, 1, squares))).astype(x.dtype)


def group_norm(y: jax.Array, scale: jax.Array, bias: jax.Array | None, epsilon: float) -> jax.Array:
    """LayerNorm of each head of ``y`` (batch, length, heads, head_dim), returned as (batch, length, heads * head_dim);
    ``scale`` and ``bias`` are (heads * head_dim,).
    """
    y = y - jnp.mean(y, axis=-1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + epsilon)
    y = y.reshape(*y.shape[:-2], -1) * scale.astype(y.dtype)
    return y if bias is None else y + bias.astype(y.dtype)
