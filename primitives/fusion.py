"""A barrier against harmful fusion by the compiler: gradients of residual streams on CPU.

The gradient of a residual stream is a chain of additions, one for each branch, and each partial sum is read by several
matrix products. XLA's CPU compiler fuses the whole chain so far into each of those reads: block n sums n gradients
several times, and the backward pass of a deep model spends much of its time there (ViT-S: half of it). The compiler
removes optimization barriers before it fuses.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from primitives.differentiation import differentiable


@differentiable()
def gradient_computed_once(x: jax.Array) -> jax.Array:
    """``x`` itself; on CPU its gradient is materialized as an array instead of being fused into its consumers. Other
    platforms are unaffected.
    """
    return x


def _forward(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return x, lax.slice(x, (0,) * x.ndim, (1,) * x.ndim).reshape(())


def _backward(first: jax.Array, dx: jax.Array) -> tuple[Any]:
    # XLA does not fuse across a conditional. The predicate is false only for NaN, where the gradient is NaN anyway, but
    # the compiler can't know that.
    def on_cpu(dx: jax.Array) -> jax.Array:
        return lax.cond(first == first, lambda dx: dx, lambda dx: jnp.full_like(dx, jnp.nan), dx)

    return (lax.platform_dependent(dx, cpu=on_cpu, default=lambda dx: dx),)


gradient_computed_once.define(_forward, _backward)
