"""Sigmoid and ReLU attention against the authors' layers, and the constants that their weights are divided by."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import layers
from layers import Tokens, flatten
from tests.compilation import program
from tests.references import elementwise_attention as recorded
from tests.references.comparing import relative

RNG = np.random.default_rng(0)
ROTARY = {"base": 10000.0, "interleaved": True}
NORM = functools.partial(layers.LayerNorm, epsilon=1e-5)
SIGMOID: dict[str, Any] = {"name": "sigmoid_attention", "logit_bias": recorded.BIAS}
LAYERS: dict[str, dict[str, Any]] = {
    "sigmoid": SIGMOID,
    "sigmoid_rotary": {**SIGMOID, "qk_norm": NORM, "rotary": ROTARY, "causal": True},
    "sigmoid_alibi": {**SIGMOID, "qk_norm": NORM, "relative": "alibi", "causal": True},
    "relu": {"name": "relu_attention", "causal": True},
}


@pytest.mark.reference
@pytest.mark.parametrize("name", LAYERS)
def test_it_is_the_authors(name: str, record_property: Any) -> None:
    spec, options = LAYERS[name], {"num_heads": recorded.HEADS, "use_bias": False, "rngs": nnx.Rngs(0)}
    layer = layers.create_mixer(spec, recorded.FEATURES, **options)
    ours = {}
    for own, array in recorded.weights().items():
        part, kind = own.replace("q_norm", "query_norm").replace("k_norm", "key_norm").split(".")
        ours[f"{part}.{'bias' if kind == 'bias' else 'kernel' if array.ndim == 2 else 'scale'}"] = jnp.asarray(array.T)
    layers.assign(layer, {own: ours[own] for own in flatten(layer)})

    @jax.jit
    def run(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        y, pull = jax.vjp(layer, x)
        return y, pull(jnp.cos(y))[0]

    arrays, found = np.load(recorded.PATH), run(recorded.tokens())
    difference = max(relative(a, arrays[f"{name}/{b}"]) for a, b in zip(found, ("out", "gradient"), strict=True))
    repository = "GuoTianYu2000/Active-Dormant-Attention" if name == "relu" else "apple/ml-sigmoid-attention"
    about = {"architecture": f"{spec['name']} (layer)", "reference": f"github.com/{repository}, {name}"}
    record_property("parity", {**about, "kind": "recorded", "mapped": len(flatten(layer)), "difference": difference})
    assert difference < 1e-5


def test_weights_sum_to_about_1_at_the_length_of_training() -> None:
    """Where logits are near 0, as initially; longer texts have the same constant."""
    sums = {}
    for length in (64, 256):
        mixer = layers.create_mixer("sigmoid_attention", 16, num_heads=2, length=64, rngs=nnx.Rngs(0))
        x = RNG.standard_normal((1, length, 16)).astype(np.float32)
        with layers.collecting(layers.Diagnostic, name="attention") as sown:
            mixer(jnp.asarray(x))
        sums[length] = float(sown.named(mixer)["attention"].sum(-1).mean())
    np.testing.assert_allclose([sums[64], sums[256]], [1, 4], rtol=0.05)


def test_the_length_is_given_or_the_models() -> None:
    made = {"num_heads": 2, "rngs": nnx.Rngs(0)}
    for options, length in (({"length": 50}, 50), ({"grid": (4, 6)}, 24), ({}, 2048)):
        assert layers.SigmoidAttention(8, **options, **made).logit_bias == -math.log(length)
    assert layers.SigmoidAttention(8, logit_bias=0.0, length=9, **made).logit_bias == 0
    for name in ("sigmoid_attention", "relu_attention"):
        with pytest.raises(ValueError, match="length is the number of tokens in training, at least 1; got 0"):
            layers.create_mixer(name, 8, length=0, **made)
    with pytest.raises(ValueError, match="causal queries count what they see"):
        layers.create_mixer("relu_attention", 8, causal=True, length=9, **made)
    with pytest.raises(ValueError, match="sinks=True adds a term to a softmax's denominator, and sigmoid weights"):
        layers.create_mixer("sigmoid_attention", 8, sinks=True, **made)


@pytest.mark.parametrize("causal", [True, False])
def test_relu_weights(causal: bool) -> None:
    """Divided by the tokens of the window, from the start of the document, or by a constant."""
    options: dict[str, Any] = {"causal": True, "window": 3} if causal else {"length": 5}
    mixer = layers.create_mixer("relu_attention", 4, num_heads=1, rngs=nnx.Rngs(0), **options)
    x = RNG.standard_normal((1, 9, 4)).astype(np.float32)
    ids = np.repeat([[0, 1]], [4, 5], axis=1)
    found = program(mixer)(x, Tokens(segment_ids=jnp.asarray(ids)))
    weights = {name: np.asarray(array, np.float64) for name, array in flatten(mixer).items()}
    q, k, v = (x[0] @ weights[f"{part}.kernel"] + weights[f"{part}.bias"] for part in ("query", "key", "value"))
    expected = np.zeros_like(v)
    for i in range(9):
        start = 0 if i < 4 else 4
        sees = range(max(start, i - 2), i + 1) if causal else range(start, 4 if i < 4 else 9)
        for j in sees:
            expected[i] += max(q[i] @ k[j] / 2, 0) * v[j] / (len(sees) if causal else 5)
    assert relative(found[0], expected @ weights["out.kernel"] + weights["out.bias"]) < 1e-5
