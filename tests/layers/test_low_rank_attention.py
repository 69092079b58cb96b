"""LAMA against its equation in float64, head by head: values and slopes."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import layers
from layers import LowRankPool
from tests.layers.mixer_cases import relative

FEATURES, HEADS, ROWS = 6, 3, (11, 7)
MASK = np.arange(max(ROWS)) < np.array(ROWS)[:, None]


def expected(w: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    found = np.zeros((len(ROWS), HEADS, FEATURES))
    for row, length in enumerate(ROWS):
        h = x[row, :length]
        context = w.get("context", h.mean(0))
        scores = np.array(
            [np.tanh((w["context_factor"][:, k] @ context) * (h @ w["token_factor"][:, k])) for k in range(HEADS)]
        )
        scores /= np.linalg.norm(scores, axis=0)
        for k in range(HEADS):
            weights = np.exp(scores[k]) / np.exp(scores[k]).sum()
            found[row, k] = sum(weights[t] * h[t] for t in range(length))
    return found


@pytest.mark.parametrize("context", ["mean", "learned"])
def test_values_and_slopes_of_the_equation(context: Any) -> None:
    """The slope is that along a random direction in which every parameter moves."""
    pool = LowRankPool(FEATURES, HEADS, context=context, rngs=nnx.Rngs(0))
    assert layers.parameter_count(pool) == 2 * HEADS * FEATURES + (FEATURES if context == "learned" else 0)
    graphdef, state = nnx.split(pool)
    rng = np.random.default_rng(0)
    x, way = (a * MASK[..., None] for a in rng.standard_normal((2, len(ROWS), max(ROWS), FEATURES)).astype(np.float32))
    cotangent = rng.standard_normal((len(ROWS), HEADS, FEATURES)).astype(np.float32)

    @jax.jit
    def run(state: nnx.State, x: jax.Array) -> Any:
        def loss(state: nnx.State, x: jax.Array) -> tuple[jax.Array, jax.Array]:
            y, _ = nnx.merge(graphdef, state)(jnp.where(MASK[..., None], x, jnp.nan), MASK)
            return jnp.sum(y * cotangent), y

        return jax.value_and_grad(loss, (0, 1), has_aux=True)(state, x)

    (_, got), gradients = run(state, x)
    weights = {name: np.asarray(a, np.float64) for name, a in layers.flatten(pool).items()}
    slopes = {name: np.asarray(a) for name, a in layers.flatten(nnx.merge(graphdef, gradients[0])).items()}
    assert relative(got, expected(weights, x.astype(np.float64))) < 1e-5
    ways, step = {name: rng.standard_normal(a.shape) for name, a in weights.items()}, 1e-6

    def moved(sign: int) -> float:
        there = {name: a + sign * step * ways[name] for name, a in weights.items()}
        return float(np.sum(expected(there, x.astype(np.float64) + sign * step * way) * cotangent))

    slope = sum(float(np.sum(slopes[name] * ways[name])) for name in ways) + float(np.sum(gradients[1] * way))
    assert slope == pytest.approx((moved(1) - moved(-1)) / (2 * step), rel=1e-4)
