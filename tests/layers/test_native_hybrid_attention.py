"""Native hybrid attention against its equation, token by token in float64: values and slopes; refusals."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from layers import NativeHybridAttention, flatten
from tests.layers.mixer_cases import relative
from tests.tiers import tiered

FEATURES, HEADS, SLOTS, LENGTH = 12, 2, 5, 33
WIDTH = FEATURES // HEADS
X = np.random.default_rng(0).standard_normal((1, LENGTH, FEATURES)).astype(np.float32)
Weights = dict[str, np.ndarray]


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def turned(x: np.ndarray, place: int) -> np.ndarray:
    """Halves of a head's features turn by an angle that falls with their index."""
    half = WIDTH // 2
    angle = place * 10000.0 ** (-np.arange(half) / half)
    first, second = x[:half], x[half:]
    return np.concatenate(
        [first * np.cos(angle) - second * np.sin(angle), second * np.cos(angle) + first * np.sin(angle)]
    )


def expected(x: np.ndarray, w: Weights, window: int, delay: int) -> np.ndarray:
    """One row (length, features)."""
    q, k, v = (x @ w[f"{name}.kernel"] for name in ("query", "key", "value"))
    forget = (1 / (1 + np.exp(-(x @ w["forget.kernel"])))) ** (1 / 8)
    found = np.zeros_like(q)
    for head in range(HEADS):
        own, slots = slice(head * WIDTH, (head + 1) * WIDTH), slice(head * SLOTS, (head + 1) * SLOTS)
        keys, values = np.zeros((SLOTS, WIDTH)), np.zeros((SLOTS, WIDTH))
        for t in range(len(x)):
            if (late := t - delay) >= 0:
                f = forget[late, slots, None]
                keys = f * keys + (1 - f) * silu(k[late, own])
                values = f * values + (1 - f) * silu(v[late, own])
            seen = range(max(0, t - window + 1), t + 1)
            near = [turned(k[s, own], s) @ turned(q[t, own], t) for s in seen]
            p = np.exp(np.concatenate([keys @ silu(q[t, own]), near]))
            p /= p.sum()
            found[t, own] = p @ np.concatenate([values, [silu(v[s, own]) for s in seen]])
    y = silu(found)
    return y / np.sqrt((y**2).mean(-1, keepdims=True) + 1e-5) * w["norm.scale"] @ w["out.kernel"]


@pytest.mark.parametrize(
    ("window", "delay"), tiered([(4, None), (3, 0), (1, 7), (LENGTH, None)], lambda given: given == (4, None))
)
def test_the_equation(window: int, delay: int | None) -> None:
    mixer = NativeHybridAttention(
        FEATURES, num_heads=HEADS, num_slots=SLOTS, window=window, delay=delay, rngs=nnx.Rngs(0)
    )
    graph, state = nnx.split(mixer)
    weights = {name: np.asarray(a, np.float64) for name, a in flatten(mixer).items()}
    rng = np.random.default_rng(1)
    direction, cotangent = (rng.standard_normal((LENGTH, FEATURES)) for _ in range(2))

    def exact(step: float) -> np.ndarray:
        return expected(X[0].astype(np.float64) + step * direction, weights, window, window if delay is None else delay)

    @jax.jit
    def run(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        y, pull = jax.vjp(lambda x: nnx.merge(graph, state)(x), x)
        return y, pull(jnp.asarray(cotangent[None], jnp.float32))[0]

    y, gradient = run(jnp.asarray(X))
    assert relative(y[0], exact(0)) < 1e-5
    slope = ((exact(1e-5) - exact(-1e-5)) * cotangent).sum() / 2e-5
    assert abs(float((gradient[0] * direction).sum()) / slope - 1) < 1e-4


@pytest.mark.parametrize("options", [{"window": 0}, {"delay": -1}])
def test_refusals(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="a window of at least one token and a delay of at least 0"):
        NativeHybridAttention(FEATURES, num_heads=HEADS, rngs=nnx.Rngs(0), **options)
