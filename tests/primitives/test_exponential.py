"""The CPU's own exponential, softplus, SiLU and normal distribution against float64, at the ends of float32, and their
gradients.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from layers.mlp import gelu, gelu_tanh
from pallas_kernels import dispatch
from primitives import exponential
from tests.compilation import OPTIMIZED
from zoo.backbones.isotropic import quick_gelu

# As for users: what is exact depends on what the compiler makes of it.
compiled = functools.partial(jax.jit, compiler_options=OPTIMIZED)

# Each with the same in float64, and the relative error that is allowed beside that of rounding the argument, (1 + |x|)
# 2^-23 or so.
FUNCTIONS: dict[str, tuple[Callable[..., Any], Callable[[np.ndarray], np.ndarray]]] = {
    "exp2": (exponential.exp2, np.exp2),
    "softplus": (exponential.softplus, lambda x: np.logaddexp(x, 0)),
    "silu": (exponential.silu, lambda x: x / (1 + np.exp(-x))),
    "normal_cdf": (exponential.normal_cdf, lambda x: 0.5 * np.vectorize(math.erfc)(-x / math.sqrt(2))),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_values_are_those_of_float64(name: str) -> None:
    function, exact = FUNCTIONS[name]
    x = np.concatenate(
        [np.linspace(-80, 80, 160_001), np.linspace(-1, 1, 20_001), np.linspace(-1e-3, 1e-3, 2_001)]
    ).astype(np.float32)
    wanted = exact(x.astype(np.float64))
    values = np.asarray(compiled(function)(x), np.float64)
    allowed = 2e-7 if name == "exp2" else 2e-7 * (1 + np.abs(x))
    if name == "normal_cdf":
        # The argument of its exponential is x^2; what float32 has no normal number for is 0.
        allowed = np.where(wanted < 1e-37, 1, 4e-7 + 1e-7 * x.astype(np.float64) ** 2)
    assert np.all(np.abs(values - wanted) <= allowed * np.abs(wanted))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients_are_differences_of_float64(name: str) -> None:
    function, exact = FUNCTIONS[name]
    x = np.linspace(-30, 30, 601).astype(np.float32)
    wide = x.astype(np.float64)
    wanted = (exact(wide + 1e-5) - exact(wide - 1e-5)) / 2e-5
    gradients = jax.vmap(jax.grad(function))(jnp.asarray(x))
    np.testing.assert_allclose(gradients, wanted, rtol=2e-5, atol=1e-6)


def test_ends_of_float32() -> None:
    ends = jnp.asarray([-np.inf, -3e38, -127, 0, 128, 3e38, np.inf, np.nan], jnp.float32)
    np.testing.assert_array_equal(compiled(exponential.exp2)(ends), [0, 0, 0, 1, np.inf, np.inf, np.inf, np.nan])
    np.testing.assert_array_equal(compiled(exponential.softplus)(ends), jax.nn.softplus(ends))
    np.testing.assert_allclose(
        compiled(exponential.normal_cdf)(ends), [0, 0, 0, 0.5, 1, 1, 1, np.nan], rtol=1e-7, atol=0
    )
    np.testing.assert_array_equal(
        compiled(exponential.silu)(ends), np.asarray([np.nan, 0, 0, 0, 128, 3e38, np.inf, np.nan], np.float32)
    )


@pytest.mark.parametrize("function", [exponential.silu, gelu, gelu_tanh, quick_gelu])
def test_slopes_far_out_are_those_of_a_rectifier(function: Callable[..., Any]) -> None:
    """The tanh form's square of the argument is infinite there."""
    far = jnp.asarray([-1e20, -40, 40, 1e20], jnp.float32)
    np.testing.assert_allclose(compiled(jax.vmap(jax.grad(function)))(far), [0, 0, 1, 1], atol=1e-6)


def test_a_state_that_hardly_decays_keeps_its_value() -> None:
    """10,000 factors 2^-1e-6: an error that always has one sign would add up."""
    last = compiled(
        lambda rate: jax.lax.fori_loop(0, 10_000, lambda _, state: exponential.exp2(rate) * state, jnp.float32(1))
    )
    for rate in (-1e-6, -1.3e-4):
        factor = float(exponential.exp2(jnp.float32(rate)))
        # The rounding of one factor is repeated in each; that of the products is not.
        assert abs(float(last(jnp.float32(rate))) / factor**10_000 - 1) < 1e-4
        assert abs(factor - 2**rate) <= 2**-24


@pytest.mark.parametrize("name", FUNCTIONS)
def test_other_dtypes_and_platforms_take_the_functions_of_jax(name: str) -> None:
    function, _ = FUNCTIONS[name]
    by_erfc = lambda x: 0.5 * jax.lax.erfc(-math.sqrt(0.5) * x)  # noqa: E731
    ours = {"exp2": jnp.exp2, "softplus": jax.nn.softplus, "silu": jax.nn.silu, "normal_cdf": by_erfc}[name]
    x = jnp.linspace(-20, 20, 101)
    np.testing.assert_array_equal(function(x.astype(jnp.bfloat16)), ours(x.astype(jnp.bfloat16)))
    with dispatch.platform("tpu"):
        assert "shift_left" not in str(jax.make_jaxpr(lambda x: function(x))(x))
    assert "shift_left" in str(jax.make_jaxpr(lambda x: function(x))(x))


@pytest.mark.parametrize(("function", "approximate"), [(gelu, False), (gelu_tanh, True)])
def test_gelu_and_its_gradient_are_those_of_jax(function: Callable[..., Any], approximate: bool) -> None:
    """As far out as e^x overflows inside."""
    wanted = lambda x: jax.nn.gelu(x, approximate=approximate)  # noqa: E731
    x = jnp.linspace(-60, 60, 12_001)
    low = x.astype(jnp.bfloat16)

    @jax.jit
    def run() -> Any:
        values, slopes = (
            [call(f)(x) for f in (function, wanted)] for call in (jax.vmap, lambda f: jax.vmap(jax.grad(f)))
        )
        return values, slopes, [function(low).astype(jnp.float32), wanted(low.astype(jnp.float32))]

    # In bfloat16 a step of its rounding beside the float32 value.
    for (got, want), (relative, absolute) in zip(run(), ((1e-6, 1e-6), (1e-5, 1e-5), (2e-2, 1e-2)), strict=True):
        np.testing.assert_allclose(got, want, rtol=relative, atol=absolute)
