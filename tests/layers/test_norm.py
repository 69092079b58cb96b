"""Norms: exact where inputs are extreme, float32 inside whatever the dtype."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from layers.norm import NORMS, GatedRMSNorm, create_norm

RNG = np.random.default_rng(0)


def exact(kind: str, x: np.ndarray, epsilon: float) -> np.ndarray:
    """The norm in float64."""
    x = np.asarray(x, np.float64)
    if kind == "affine":  # no statistics; at first a scale of 1 and a shift of 0
        return x
    if kind == "unit":
        return x / np.linalg.norm(x, axis=-1, keepdims=True)
    if kind.endswith("rms"):
        return x / np.sqrt(np.mean(x**2, -1, keepdims=True) + epsilon)
    axis = -1 if kind.endswith("layer") else 0
    return (x - x.mean(axis, keepdims=True)) / np.sqrt(x.var(axis, keepdims=True) + epsilon)


@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize(("offset", "scale"), [(0.0, 1.0), (0.0, 1e-6), (0.0, 1e6), (300.0, 0.1)], ids=str)
def test_extreme_inputs(kind: str, offset: float, scale: float) -> None:
    x = (offset + scale * RNG.standard_normal((32, 16))).astype(np.float32)
    norm = create_norm(kind, 16, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(norm(x), exact(kind, x, getattr(norm, "epsilon", 0)), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("kind", NORMS)
def test_constant_and_zero_inputs_are_finite(kind: str) -> None:
    norm = create_norm(kind, 4, rngs=nnx.Rngs(0))
    for value in (0.0, 5.0):
        assert np.isfinite(norm(jnp.full((3, 4), value))).all()


@pytest.mark.parametrize("kind", NORMS)
def test_half_precision_has_float32_statistics(kind: str) -> None:
    x = (100 + RNG.standard_normal((64, 16))).astype(jnp.bfloat16)
    norm = create_norm(kind, 16, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    y = norm(x)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        np.asarray(y, np.float64),
        exact(kind, np.asarray(x, np.float64), getattr(norm, "epsilon", 0)),
        rtol=0.02,
        atol=0.02,
    )


def test_batch_norm_moves_its_statistics_in_training_only() -> None:
    norm = create_norm("batch", 4, rngs=nnx.Rngs(0))
    x = jnp.asarray(3 + RNG.standard_normal((64, 4)), jnp.float32)
    norm.eval()
    norm(x)
    np.testing.assert_array_equal(norm.mean[...], np.zeros(4))
    norm.train()
    norm(x)
    np.testing.assert_allclose(norm.mean[...], 0.1 * np.asarray(x).mean(0), rtol=1e-4)


def test_unknown_norm() -> None:
    with pytest.raises(ValueError, match=r"unknown norm 'group'; known: layer, .*rms, .*batch"):
        create_norm("group", 4, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("gated", ["before", "after"])
@pytest.mark.parametrize("sigmoid", [False, True])
def test_gated_norm_is_over_each_group(gated: Literal["before", "after"], sigmoid: bool) -> None:
    norm = GatedRMSNorm(
        6, groups=2, gated=gated, rngs=nnx.Rngs(0), **({"activation": jax.nn.sigmoid} if sigmoid else {})
    )
    norm.scale[...] = jnp.arange(1.0, 7.0)
    x, gate = RNG.standard_normal((2, 3, 6)).astype(np.float32)
    factor = (1 if sigmoid else gate.astype(np.float64)) / (1 + np.exp(-gate.astype(np.float64)))
    before, after = (factor, 1) if gated == "before" else (1, factor)
    expected = exact("rms", (x * before).reshape(3, 2, 3), 1e-5).reshape(3, 6) * np.arange(1, 7) * after
    np.testing.assert_allclose(norm(jnp.asarray(x), jnp.asarray(gate)), expected, rtol=1e-5)
    np.testing.assert_allclose(
        norm(jnp.asarray(x), None), exact("rms", x.reshape(3, 2, 3), 1e-5).reshape(3, 6) * np.arange(1, 7), rtol=1e-5
    )


def test_a_gated_norm_and_its_slope_at_large_products() -> None:
    """It does not depend on the length of x, but for a factor: a gate multiplies values, which grow as powers do."""
    norm = GatedRMSNorm(6, epsilon=1e-12, rngs=nnx.Rngs(0))
    x, weight = RNG.standard_normal((2, 3, 6)).astype(np.float32)
    slope = jax.grad(lambda x: jnp.sum(norm(x, None) * weight))
    for size in (1e14, 1e16, 1e25):
        np.testing.assert_allclose(norm(size * jnp.asarray(x), None), norm(jnp.asarray(x), None), rtol=1e-5)
        np.testing.assert_allclose(size * slope(size * jnp.asarray(x)), slope(jnp.asarray(x)), rtol=1e-4, atol=1e-5)
