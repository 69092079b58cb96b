"""Kernelized attention against its equation, weight by weight in float64: values and slopes."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import layers
from layers import KernelizedAttention, Tokens, flatten
from tests.compilation import program
from tests.layers.mixer_cases import WIDE, relative

FEATURES, HEADS, LENGTH = 12, 2, 37
WIDTH = FEATURES // HEADS
RNG = np.random.default_rng(0)
X = RNG.standard_normal((1, LENGTH, FEATURES)).astype(np.float32)
Weights = dict[str, np.ndarray]


def phi(x: np.ndarray, projection: np.ndarray, length: float | None) -> np.ndarray:
    x = x / WIDTH**0.25 if length is None else length * x / np.linalg.norm(x, axis=-1, keepdims=True)
    return np.exp(x @ projection.T - (x**2).sum(-1, keepdims=True) / 2) / np.sqrt(len(projection))


def expected(x: np.ndarray, w: Weights, mixer: KernelizedAttention, length: float | None) -> tuple[np.ndarray, float]:
    """One row (length, features), and the least sum of a token's weights over the largest of its head."""
    q, k, v = (x @ w[f"{name}.kernel"] + w[f"{name}.bias"] for name in ("query", "key", "value"))
    offset = np.arange(LENGTH) - np.arange(LENGTH)[:, None]  # j - i
    index = np.clip(offset + mixer.reach - 1, 0, w["bias"].shape[1] - 1)
    found, least = np.zeros_like(q), 1.0
    for head in range(HEADS):
        own = slice(head * WIDTH, (head + 1) * WIDTH)
        asks, gives = (phi(a[:, own], w["feature_map.projection"], length) for a in (q, k))
        weights = asks @ gives.T * np.exp(w["bias"][head, index])
        weights = np.tril(weights) if mixer.causal else weights
        total = weights.sum(-1, keepdims=True)
        found[:, own], least = weights @ v[:, own] / total, min(least, total.min() / total.max())
    return found @ w["out.kernel"] + w["out.bias"], least


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("reach", "length"), [(50, 1.0), (4, 1.5), (9, None)])
def test_the_equation(causal: bool, reach: int, length: float | None) -> None:
    mixer = KernelizedAttention(
        FEATURES, num_heads=HEADS, causal=causal, reach=reach, length=length, epsilon=0.0, rngs=nnx.Rngs(0)
    )
    layers.assign(mixer, {"bias": jnp.asarray(RNG.standard_normal(mixer.bias.shape), jnp.float32)})
    graph, state = nnx.split(mixer)
    weights = {name: np.asarray(a, np.float64) for name, a in flatten(mixer).items()}
    direction, cotangent = (RNG.standard_normal((LENGTH, FEATURES)) for _ in range(2))
    bias = RNG.standard_normal(mixer.bias.shape)

    def exact(step: float) -> tuple[np.ndarray, float]:
        moved = {**weights, "bias": weights["bias"] + step * bias}
        return expected(X[0].astype(np.float64) + step * direction, moved, mixer, length)

    @jax.jit
    def run(state: nnx.State, x: jax.Array) -> tuple[jax.Array, nnx.State, jax.Array]:
        y, pull = jax.vjp(lambda state, x: nnx.merge(graph, state)(x), state, x)
        return y, *pull(jnp.asarray(cotangent[None], jnp.float32))

    y, of_state, of_x = run(state, jnp.asarray(X))
    # A transform's error is one of the row's largest sums, and a token's is divided by its own.
    want, least = exact(0)
    assert relative(y[0], want) < 2e-7 / least
    slope = ((exact(1e-5)[0] - exact(-1e-5)[0]) * cotangent).sum() / 2e-5
    found = (np.asarray(of_x[0]) * direction).sum() + (np.asarray(of_state["bias"][...]) * bias).sum()
    assert abs(found / slope - 1) < 1e-3


@pytest.mark.parametrize(("causal", "form"), [(False, "transforms"), (True, "pairs"), (True, "pieces")])
def test_features_of_long_queries_and_keys(causal: bool, form: str) -> None:
    """They underflow, and only their ratios count."""
    options: dict[str, Any] = {"num_heads": HEADS, "reach": 4, "length": None, "kernel_init": WIDE}
    mixer = KernelizedAttention(FEATURES, causal=causal, **options, rngs=nnx.Rngs(0))
    x = 10 * X
    weights = {name: np.asarray(a, np.float64) for name, a in flatten(mixer).items()}
    q, k = (np.linalg.norm((x[0] @ weights[f"{name}.kernel"]).reshape(-1, WIDTH), axis=-1) for name in ("query", "key"))
    assert max(q) > 15
    assert max(k) > 15
    want = expected(x[0].astype(np.float64), weights, mixer, None)[0]
    if form == "pieces":
        got, state = [], mixer.init_state(1, LENGTH)
        for start, stop in ((0, 1), (1, 20), (20, LENGTH)):
            y, state = program(mixer, "extend")(x[:, start:stop], state)
            got.append(y[0])
        assert relative(np.concatenate(got), want) < 2e-5
    else:
        ids = Tokens(segment_ids=np.zeros((1, LENGTH), np.int32)) if form == "pairs" else None
        assert relative(program(mixer)(x, ids)[0], want) < 2e-5


def test_many_features_approach_softmax_attention() -> None:
    """Of queries and keys of norm 1, with b added to the logits."""
    mixer = KernelizedAttention(
        FEATURES,
        num_heads=1,
        feature_map={"name": "positive_random", "features": 40_000},
        reach=LENGTH,
        rngs=nnx.Rngs(0),
    )
    q, k, v = (jnp.asarray(RNG.standard_normal((1, 5, 1, FEATURES)), jnp.float32) for _ in range(3))
    asks, gives = (jnp.exp(mixer._kept(a)) for a in (q, k))
    got = mixer._direct(asks, gives, jnp.concatenate([v, jnp.ones_like(v[..., :1])], -1))
    unit = [np.asarray(a[0, :, 0], np.float64) for a in (q, k)]
    a, b = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in unit)
    weights = np.exp(a @ b.T)
    want = weights / weights.sum(-1, keepdims=True) @ np.asarray(v[0, :, 0])
    assert relative(got[0, :, 0, :-1] / got[0, :, 0, -1:], want) < 0.02
