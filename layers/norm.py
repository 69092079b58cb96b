"""Normalisation by name, with float32 statistics whatever the compute dtype."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn.dtypes import canonicalize_dtype

from layers.broadcast import widened


def _statistics_wide(arrays: tuple[Any, ...], *, dtype: Any = None, inexact: bool = True) -> tuple[Any, ...]:
    """Inputs in the dtype of the computation; kept statistics, scale and bias, which all rows share, in float32: see :mod:`layers.broadcast`."""
    x, *shared = arrays
    dtype = canonicalize_dtype(*(a for a in arrays if a is not None), dtype=dtype, inexact=inexact)
    return x.astype(dtype), *(None if a is None else widened(a) for a in shared)


# The two-pass variance: the one-pass form (E[x^2] - E[x]^2) cancels when the mean is large.
LayerNorm = functools.partial(nnx.LayerNorm, use_fast_variance=False)
RMSNorm = nnx.RMSNorm
BatchNorm = functools.partial(nnx.BatchNorm, momentum=0.9, use_fast_variance=False, promote_dtype=_statistics_wide)

NORMS: dict[str, Callable[..., nnx.Module]] = {"layer": LayerNorm, "rms": RMSNorm, "batch": BatchNorm}

Norm = str | Callable[..., nnx.Module]
"""A name in :data:`NORMS`, or a callable ``(features, *, dtype, param_dtype, rngs) -> module``."""


def create_norm(norm: Norm, features: int, *, dtype: Any = None, param_dtype: Any = jnp.float32, rngs: nnx.Rngs, **options: Any) -> nnx.Module:
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
    """``x / |x|`` over the last axis, in float32; a vector of length 0 stays one, and has a gradient of 0."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    squares = jnp.sum(jnp.square(wide), axis=-1, keepdims=True)
    zero = squares < 1e-24
    return jnp.where(zero, 0, wide * jax.lax.rsqrt(jnp.where(zero, 1, squares))).astype(x.dtype)
