"""The gradient of a residual stream: the same numbers, and on CPU no fusion that grows with the depth."""

from __future__ import annotations

import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from primitives.fusion import gradient_computed_once

Fork = Callable[[jax.Array], jax.Array]


def loss(fork: Fork) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """A chain of residual branches, each a normalized linear layer, in three dimensions as tokens are."""

    def run(x: jax.Array, weights: jax.Array) -> jax.Array:
        for w in weights:
            x = fork(x)
            x = x + ((x - x.mean(-1, keepdims=True)) * jax.lax.rsqrt(x.var(-1, keepdims=True) + 1e-6)) @ w
        return jnp.sin(x).sum()

    return run


def arguments(depth: int, dtype: jnp.dtype = jnp.float32) -> tuple[jax.Array, jax.Array]:
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.standard_normal((2, 5, 32)), dtype), jnp.asarray(
        0.2 * rng.standard_normal((depth, 32, 32)), dtype
    )


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_gradients_are_the_same(dtype: jnp.dtype) -> None:
    x, weights = arguments(4, dtype)
    plain, once = (
        jax.jit(jax.grad(loss(fork), argnums=(0, 1)))(x, weights) for fork in (lambda x: x, gradient_computed_once)
    )
    for a, b in zip(once, plain, strict=True):
        assert a.dtype == dtype
        assert float(jnp.abs(a - b).max() / jnp.abs(b).max()) < (1e-6 if dtype == jnp.float32 else 0.03)


def test_of_batches_and_of_what_is_not_a_number() -> None:
    x, weights = arguments(2)
    gradient = jax.jit(jax.grad(lambda x: loss(gradient_computed_once)(x, weights)))
    np.testing.assert_allclose(jax.vmap(gradient)(x[:, None]), gradient(x)[:, None], atol=1e-5)
    assert jnp.isnan(gradient(x.at[0, 0, 3].set(jnp.nan))[0, 0]).all()


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="a fault of the CPU compiler")
def test_no_fusion_grows_with_the_depth() -> None:
    def largest(fork: Fork, depth: int) -> int:
        text = jax.jit(jax.grad(loss(fork), argnums=(0, 1))).lower(*arguments(depth)).compile().as_text()
        return max(part.count(" = ") for part in re.split(r"\n\n", text) if part.lstrip().startswith("%fused"))

    assert largest(gradient_computed_once, 12) < 1.25 * largest(gradient_computed_once, 6)
    assert largest(lambda x: x, 12) > 1.75 * largest(lambda x: x, 6)  # else the remedy is needed no more
