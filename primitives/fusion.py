"""Where the compiler's fusion does harm: gradients of residual streams on CPU.

The gradient of a residual stream is a chain of additions, one for each branch, and each link of it is
read by several matrix products. XLA's CPU compiler fuses the whole chain so far into each of those
reads: block n adds up n gradients several times over, and the backward pass of a deep model spends more
time there than in its products (ViT-S: half of it). Its optimization barriers are removed before it fuses.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from primitives.differentiation import differentiable


@differentiable()
def gradient_computed_once(x: jax.Array) -> jax.Array:
    """``x`` itself; on CPU its gradient is an array of its own rather than part of whatever reads it. Elsewhere nothing
    is changed.
    """
    return x


def _forward(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return x, lax.slice(x, (0,) * x.ndim, (1,) * x.ndim).reshape(())


def _backward(first: jax.Array, dx: jax.Array) -> tuple[Any]:
    # A branch is never fused across. Which one is taken can't be known to the compiler: of NaN it is the other, and NaN
    # is what follows anyway.
    def on_cpu(dx: jax.Array) -> jax.Array:
        return lax.cond(first == first, lambda dx: dx, lambda dx: jnp.full_like(dx, jnp.nan), dx)

    return (lax.platform_dependent(dx, cpu=on_cpu, default=lambda dx: dx),)


gradient_computed_once.define(_forward, _backward)
