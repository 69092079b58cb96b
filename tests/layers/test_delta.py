"""The delta rule mixers against their formula, token by token in NumPy; what they can track; what they refuse."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import layers
from layers import DeltaNet, DeltaProduct, GatedDeltaNet, assign
from tests.layers.mixer_cases import relative
from tests.tiers import tiered


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def formula(layer: DeltaNet, x: np.ndarray) -> np.ndarray:
    """y of one row x (length, features) by the docstring of the module, in float64."""
    weights = {name: np.asarray(value, np.float64) for name, value in layers.flatten(layer).items()}
    steps, heads, value_heads = layer.steps, layer.num_heads, layer.value_heads

    def read(name: str) -> np.ndarray:
        y = x @ weights[f"{name}.kernel"]
        kernel = weights[f"{name}_conv.kernel"][:, 0]
        before = np.concatenate([np.zeros((len(kernel) - 1, y.shape[1])), y])
        y = sum(before[i : i + len(x)] * tap for i, tap in enumerate(kernel)) + weights.get(f"{name}_conv.bias", 0)
        return y * sigmoid(y)

    def normalized(a: np.ndarray) -> np.ndarray:
        return a / np.sqrt(np.sum(a**2, -1, keepdims=True) + 1e-6)

    q = normalized(read("query").reshape(len(x), heads, -1))
    k = normalized(read("key").reshape(len(x), steps, heads, -1))
    v = read("value").reshape(len(x), steps, value_heads, -1)
    beta = (1 + layer.negative) * sigmoid(x @ weights["beta.kernel"]).reshape(len(x), steps, value_heads)
    decay = np.zeros((len(x), value_heads))
    if layer.decay is not None:
        decay = -np.exp(weights["A_log"]) * np.log1p(np.exp(x @ weights["decay.kernel"] + weights["dt_bias"]))
    out = np.zeros((len(x), value_heads, layer.value_dim))
    for h in range(value_heads):
        memory, group = np.zeros((layer.head_dim, layer.value_dim)), h // (value_heads // heads)
        for t in range(len(x)):
            memory = np.exp(decay[t, h]) * memory
            for j in range(steps):
                memory = memory + beta[t, j, h] * np.outer(k[t, j, group], v[t, j, h] - k[t, j, group] @ memory)
            out[t, h] = q[t, group] @ memory / np.sqrt(layer.head_dim)
    out = out / np.sqrt(np.mean(out**2, -1, keepdims=True) + 1e-5) * weights["norm.scale"]
    if layer.gate is not None:
        gate = (x @ weights["gate.kernel"]).reshape(out.shape)
        out = out * gate * sigmoid(gate)
    return out.reshape(len(x), -1) @ weights["out.kernel"]


@pytest.mark.parametrize(
    ("make", "options"),
    tiered(
        [
            (DeltaNet, {}),
            (GatedDeltaNet, {"num_value_heads": 4, "conv_bias": True, "head_dim": 4, "value_expansion": 1.5}),
            (DeltaProduct, {}),
            (DeltaProduct, {"steps": 3, "use_decay": True, "use_gate": False, "negative": False}),
        ],
        lambda case: case[0] is GatedDeltaNet or "steps" in case[1],
    ),
    ids=["delta_net", "gated_delta_net", "delta_product", "gated_three_steps"],
)
def test_is_the_formula(make: Any, options: dict[str, Any]) -> None:
    layer = make(12, num_heads=2, rngs=nnx.Rngs(0), **options)
    rng = np.random.default_rng(0)
    assign(
        layer,
        {n: jnp.asarray(w + 0.1 * rng.standard_normal(w.shape), jnp.float32) for n, w in layers.flatten(layer).items()},
    )
    x = rng.standard_normal((1, 19, 12))
    assert relative(nnx.jit(lambda m, x: m(x))(layer, jnp.asarray(x, jnp.float32))[0], formula(layer, x[0])) < 1e-5


def test_options_of_the_papers() -> None:
    """The three classes are one with other defaults, each of which can be given."""
    everything = {"steps": 2, "use_decay": True, "use_gate": True, "negative": True, "value_expansion": 2.0}
    shapes = [
        {n: w.shape for n, w in layers.flatten(make(8, num_heads=2, rngs=nnx.Rngs(0), **everything)).items()}
        for make in (DeltaNet, GatedDeltaNet)
    ]
    assert shapes[0] == shapes[1]

    def has(layer: Any) -> tuple[Any, ...]:
        return layer.steps, layer.negative, layer.decay is not None, layer.gate is not None, layer.value_dim

    made = [
        has(layers.create_mixer(name, 8, causal=True, num_heads=2, rngs=nnx.Rngs(0)))
        for name in ("delta_net", "gated_delta_net", "delta_product")
    ]
    assert made == [(1, False, False, False, 4), (1, False, True, True, 8), (2, True, False, True, 8)]


@pytest.mark.parametrize("negative", [False, True])
def test_a_reflection_counts_the_ones(negative: bool) -> None:
    """With weights by hand, a memory written by the first token is turned round by every 1 after it, a thousand times
    over; with beta < 1 it is erased.
    """
    layer = DeltaNet(4, num_heads=1, negative=negative, conv_size=None, rngs=nnx.Rngs(0))
    unit = 30 * np.eye(4, dtype=np.float32)
    # Token features: first, one, zero, constant. One key for all; the first token writes (beta 1 or near it), a one has
    # the greatest beta, a zero none.
    constant = np.outer(unit[3], np.eye(4)[0])
    beta = np.asarray([[0 if negative else 30], [30], [-30], [0]], np.float32)
    value = np.outer(unit[0], np.eye(4)[1])
    assign(
        layer,
        {
            "query.kernel": constant,
            "key.kernel": constant,
            "beta.kernel": beta,
            "value.kernel": value,
            "out.kernel": np.eye(4, dtype=np.float32),
        },
    )
    bits = np.random.default_rng(0).integers(0, 2, 1000)
    x = np.zeros((1, 1001, 4), np.float32)
    x[..., 3], x[0, 0, 0] = 1, 1
    x[0, 1:, 1], x[0, 1:, 2] = bits, 1 - bits
    got = np.asarray(jax.jit(layer.__call__)(x))[0, 1:, 1]
    if negative:
        np.testing.assert_array_equal(np.sign(got), (-1.0) ** np.cumsum(bits))
        assert np.abs(got).min() > 1
    else:
        assert np.abs(got[np.cumsum(bits) > 0]).max() < 1e-3


def test_refusals() -> None:
    with pytest.raises(ValueError, match="6 features can't be split over 4 heads"):
        DeltaNet(6, num_heads=4, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="num_value_heads 3 must be a multiple of num_heads 2"):
        DeltaNet(8, num_heads=2, num_value_heads=3, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"4.4 features of a value head a whole number"):
        DeltaNet(8, num_heads=2, value_expansion=1.1, rngs=nnx.Rngs(0))
