"""Landmark attention against its definition, block by block in float64: values and slopes; retrieval; refusals."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from layers import LandmarkAttention, Mixer, create_mixer, flatten
from tests.compilation import program
from tests.layers.mixer_cases import relative

FEATURES, HEADS, LENGTH, PERIOD = 12, 2, 150, 4
WIDTH = FEATURES // HEADS
X = np.random.default_rng(0).standard_normal((1, LENGTH, FEATURES)).astype(np.float32)


def make(**options: Any) -> LandmarkAttention:
    return LandmarkAttention(FEATURES, num_heads=HEADS, period=PERIOD, rotary=None, rngs=nnx.Rngs(0), **options)


def softmax(x: np.ndarray) -> np.ndarray:
    p = np.exp(x - x.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


def expected(x: np.ndarray, w: dict[str, np.ndarray]) -> np.ndarray:
    """One row (length, features)."""
    q, k, v = (x @ w[f"{name}.kernel"] for name in ("query", "key", "value"))
    found = np.zeros_like(q)
    for head in range(HEADS):
        own = slice(head * WIDTH, (head + 1) * WIDTH)
        for t in range(len(x)):
            scores = k[: t + 1, own] @ q[t, own] / WIDTH**0.5
            block = t // PERIOD
            ends = PERIOD * np.arange(1, block + 1) - 1
            ordinary = np.arange(block * PERIOD, min(t + 1, block * PERIOD + PERIOD - 1))
            shares = softmax(scores[np.concatenate([ends, ordinary])])
            found[t, own] = shares[block:] @ v[ordinary, own]
            for share, end in zip(shares, ends, strict=False):
                inside = np.arange(end - PERIOD + 1, end)
                found[t, own] += share * (softmax(scores[inside]) @ v[inside, own])
    return found @ w["out.kernel"]


def test_the_equation() -> None:
    """Of more queries than are computed at once."""
    mixer = make()
    graph, state = nnx.split(mixer)
    weights = {name: 8 * np.asarray(a, np.float64) for name, a in flatten(mixer).items()}
    state = jax.tree.map(lambda a: 8 * a, state)
    rng = np.random.default_rng(1)
    direction, cotangent = (rng.standard_normal((LENGTH, FEATURES)) for _ in range(2))

    @jax.jit
    def run(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        y, pull = jax.vjp(lambda x: nnx.merge(graph, state)(x), x)
        return y, pull(jnp.asarray(cotangent[None], jnp.float32))[0]

    y, gradient = run(jnp.asarray(X))
    assert relative(y[0], expected(X[0].astype(np.float64), weights)) < 1e-5
    above, below = (expected(X[0] + step * direction, weights) for step in (1e-5, -1e-5))
    slope = ((above - below) * cotangent).sum() / 2e-5
    assert abs(float((gradient[0] * direction).sum()) / slope - 1) < 1e-4


def alike(first: Mixer, **options: Any) -> Mixer:
    """A mixer of other options and the same weights."""
    second = LandmarkAttention(FEATURES, num_heads=HEADS, rngs=nnx.Rngs(1), **options)
    nnx.update(second, nnx.state(first))
    return second


@pytest.mark.parametrize("local", [1, 3])
def test_what_retrieves_all_blocks_sees_all(local: int) -> None:
    """At the distances that they have."""
    options: dict[str, Any] = {"period": 3, "rotary": 100.0}
    every = LandmarkAttention(
        FEATURES, num_heads=HEADS, kernel_init=nnx.initializers.normal(0.5), rngs=nnx.Rngs(0), **options
    )
    x = X[:, :29]
    few, all_ = (program(alike(every, local=local, retrieved=count, **options))(x) for count in (1, 10))
    assert relative(all_, program(every)(x)) < 1e-5
    assert relative(few, all_) > 1e-2


def test_nothing_is_further_than_the_prefix() -> None:
    """A landmark that scores high is retrieved at a distance that does not grow with the text."""
    mixer = LandmarkAttention(
        4, num_heads=1, period=2, retrieved=1, rotary=10.0, kernel_init=nnx.initializers.ones, rngs=nnx.Rngs(0)
    )
    found = []
    for before in (3, 12):  # blocks between what is looked for and the last token
        x = np.zeros((1, 2 * before + 3, 4), np.float32)
        x[0, :2], x[0, -1] = 1, 1
        found.append(program(mixer)(x)[0, -1])
    np.testing.assert_allclose(found[0], found[1], rtol=1e-6)
    assert np.abs(found[0]).max() > 0.1


@pytest.mark.parametrize("options", [{"period": 1}, {"period": 0}, {"retrieved": 0}, {"retrieved": 2, "local": 0}])
def test_refusals(options: dict[str, int]) -> None:
    reason = "give at least 2, of which one is not a landmark" if "period" in options else "at least one is retrieved"
    with pytest.raises(ValueError, match=reason):
        create_mixer("landmark_attention", 8, num_heads=2, causal=True, rngs=nnx.Rngs(0), **options)


def test_a_full_cache_is_refused() -> None:
    mixer = make()
    with pytest.raises(ValueError, match="needs max_length"):
        mixer.init_state(1)
    with pytest.raises(ValueError, match="the cache holds 8 tokens and 9 are needed"):
        mixer.extend(jnp.zeros((1, 9, FEATURES)), mixer.init_state(1, max_length=7))
