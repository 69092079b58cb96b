"""Running sums as pairs of numbers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from primitives.sums import add, running
from tests.layers.mixer_cases import relative

X = np.random.default_rng(0).uniform(-3, 0, (2, 3001)).astype(np.float32)


@pytest.mark.parametrize("reverse", [False, True])
def test_differences_of_sums_are_exact(reverse: bool) -> None:
    total, rest = map(np.asarray, jax.jit(lambda x: running(x, 1, reverse=reverse))(X))
    exact = X.astype(np.float64)
    exact = exact[:, ::-1].cumsum(1)[:, ::-1] if reverse else exact.cumsum(1)
    assert np.abs(total - exact).max() > 1e-5
    assert np.abs(total.astype(np.float64) + rest - exact).max() < 1e-8
    step = (total[:, 1:] - total[:, :-1]) + (rest[:, 1:] - rest[:, :-1])
    np.testing.assert_allclose(step, -X[:, :-1] if reverse else X[:, 1:], rtol=1e-6, atol=1e-6)


def test_later_elements_change_no_bit() -> None:
    run = jax.jit(lambda x: running(x, 1))
    for a, b in zip(run(X), run(np.where(np.arange(3001) < 700, X, 5)), strict=True):
        np.testing.assert_array_equal(a[:, :700], b[:, :700])


@pytest.mark.parametrize("reverse", [False, True])
def test_gradient(reverse: bool) -> None:
    weight = np.random.default_rng(1).standard_normal((2, 3001))
    slope = jax.grad(lambda x: jnp.sum(weight.astype(np.float32) * sum(running(x, 1, reverse=reverse))))(X)
    want = weight.cumsum(1) if reverse else weight[:, ::-1].cumsum(1)[:, ::-1]
    assert relative(slope, want) < 1e-5


def test_sum_of_pairs() -> None:
    third = np.float32(1 / 3)
    total, rest = jax.jit(add)((third, jnp.float32(1e-9)), (jnp.float32(4096), jnp.float32(2e-9)))
    exact = np.float64(third) + 4096 + 3e-9
    assert total == np.float32(exact)
    assert float(rest) == pytest.approx(exact - float(total), rel=1e-6)
