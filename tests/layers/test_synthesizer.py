"""Synthesizer against its equation in float64, matrix by matrix: values and slopes."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import layers
from layers.initializers import truncated_normal
from tests.layers.mixer_cases import relative

FEATURES, HEADS, LENGTH = 6, 2, 9
WIDTH = FEATURES // HEADS
KINDS: dict[str, Any] = {
    "dense": "dense",
    "random": "random",
    "factorized": "factorized",
    "dot": "dot",
    "mixture": ("dense", "random", "factorized", "dot"),
}


def expected(kinds: Any, w: dict[str, np.ndarray], x: np.ndarray, causal: bool) -> np.ndarray:
    kinds = (kinds,) if isinstance(kinds, str) else kinds
    share = np.exp(w.get("mixture", np.zeros(1)))
    found = []
    for head in range(HEADS):
        part = slice(head * WIDTH, (head + 1) * WIDTH)
        scores = np.zeros((LENGTH, LENGTH))
        for a, kind in zip(share / share.sum(), kinds, strict=True):
            if kind == "dense":
                hidden = np.maximum(x @ w["hidden.kernel"] + w["hidden.bias"], 0)[:, part]
                made = hidden @ w["places"][head].T + w["place_bias"][head]
            elif kind == "random":
                made = w["table"][head]
            elif kind == "factorized":
                made = w["left"][head] @ w["right"][head].T
            else:
                made = (x @ w["query.kernel"])[:, part] @ (x @ w["key.kernel"])[:, part].T / math.sqrt(WIDTH)
            scores += a * made[:LENGTH, :LENGTH]
        weights = np.exp(scores) * (np.tril(np.ones_like(scores)) if causal else 1)
        values = (x @ w["value.kernel"] + w["value.bias"])[:, part]
        found.append(weights / weights.sum(-1, keepdims=True) @ values)
    return np.concatenate(found, -1) @ w["out.kernel"] + w["out.bias"]


@pytest.mark.parametrize("kind", KINDS)
def test_values_and_slopes_of_the_equation(kind: str) -> None:
    """The slope is that along a random direction in which every parameter moves."""
    causal = kind == "mixture"
    options = {"num_heads": HEADS, "scores": KINDS[kind], "max_length": 11, "rank": 2, "causal": causal}
    layer = layers.SynthesizerAttention(FEATURES, **options, kernel_init=truncated_normal(0.5), rngs=nnx.Rngs(0))
    graphdef, state = nnx.split(layer)
    rng = np.random.default_rng(1)
    x, cotangent, way = rng.standard_normal((3, LENGTH, FEATURES)).astype(np.float32)

    @jax.jit
    def run(state: nnx.State, x: jax.Array) -> Any:
        def loss(state: nnx.State, x: jax.Array) -> tuple[jax.Array, jax.Array]:
            y = nnx.merge(graphdef, state)(x[None])[0]
            return jnp.sum(y * cotangent), y

        return jax.value_and_grad(loss, (0, 1), has_aux=True)(state, x)

    (_, got), gradients = run(state, x)
    weights = {name: np.asarray(a, np.float64) for name, a in layers.flatten(layer).items()}
    slopes = {name: np.asarray(a, np.float64) for name, a in layers.flatten(nnx.merge(graphdef, gradients[0])).items()}
    assert relative(got, expected(KINDS[kind], weights, x.astype(np.float64), causal)) < 1e-5
    ways, step = {name: rng.standard_normal(a.shape) for name, a in weights.items()}, 1e-6

    def moved(sign: int) -> float:
        there = {name: a + sign * step * ways[name] for name, a in weights.items()}
        return float(np.sum(expected(KINDS[kind], there, x.astype(np.float64) + sign * step * way, causal) * cotangent))

    slope = sum(float(np.sum(slopes[name] * ways[name])) for name in ways) + float(np.sum(gradients[1] * way))
    size = math.sqrt(sum(float(np.sum(a**2)) for a in slopes.values()))
    assert abs(slope - (moved(1) - moved(-1)) / (2 * step)) < 1e-4 * size
    assert all(np.abs(a).max() > 0 for a in slopes.values()), "a parameter without effect"


def test_wrong_options_are_named() -> None:
    with pytest.raises(ValueError, match="scores are some of dense, random, factorized, dot"):
        layers.SynthesizerAttention(FEATURES, num_heads=HEADS, scores=("dense", "tiled"), rngs=nnx.Rngs(0))
    layer = layers.SynthesizerAttention(FEATURES, num_heads=HEADS, max_length=4, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="rows for 4 tokens, got 5: make the mixer with a larger max_length"):
        layer(jnp.zeros((1, 5, FEATURES)))
