"""The Toeplitz product: against numpy's convolution, its cost, misfits."""

from __future__ import annotations

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import toeplitz_product
from primitives.operations import count

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("length", [1, 5, 33])
def test_is_numpys_convolution(length: int) -> None:
    """By matrix and by transform, at lengths that are no power of two, both ways, channels that share a kernel."""
    x, kernel = RNG.standard_normal((1, length, 4)), RNG.standard_normal((2 * length - 1, 2))
    whole = np.stack([np.convolve(x[0, :, c], kernel[:, c // 2])[length - 1 : 2 * length - 1] for c in range(4)], 1)
    past = np.stack([np.convolve(x[0, :, c], kernel[length - 1 :, c // 2])[:length] for c in range(4)], 1)

    @jax.jit
    def run(x: jax.Array, kernel: jax.Array) -> Any:
        calls = [functools.partial(toeplitz_product, x, implementation=name) for name in ("xla", "reference")]
        return [(call(kernel, causal=False)[0], call(kernel[length - 1 :])[0]) for call in calls]

    with jax.enable_x64(True):
        for both, back in run(x, kernel):
            np.testing.assert_allclose(both, whole, rtol=1e-12, atol=1e-12)
            np.testing.assert_allclose(back, past, rtol=1e-12, atol=1e-12)


def test_cost_is_that_of_transforms() -> None:
    """Of the gradient too: twice the length takes little more than twice the operations."""

    def loss(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jnp.sum(jnp.square(toeplitz_product(x, kernel, causal=False)))

    short, long = (
        count(
            jax.grad(loss, (0, 1)),
            jax.ShapeDtypeStruct((1, length, 3), jnp.float32),
            jax.ShapeDtypeStruct((2 * length - 1, 3), jnp.float32),
        ).flops
        for length in (1024, 2048)
    )
    assert long < 2.3 * short


@pytest.mark.parametrize(
    ("x", "kernel", "causal", "message"),
    [
        ((2, 3), (3, 1), True, "x must be (batch, length >= 1, channels); got (2, 3)"),
        ((2, 3, 4), (5, 1), True, "kernel must be (3, groups), of groups that divide the 4 channels; got (5, 1)"),
        ((2, 3, 4), (5, 3), False, "kernel must be (5, groups), of groups that divide the 4 channels; got (5, 3)"),
    ],
)
def test_misfits(x: tuple[int, ...], kernel: tuple[int, ...], causal: bool, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        toeplitz_product(jnp.zeros(x), jnp.zeros(kernel), causal=causal)
