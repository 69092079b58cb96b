"""Token-aware pooling and the loss of diverse attention against loops, and the loss against the authors' own."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import layers
from layers import Tokens
from layers.attention.diverse import attention_diversity
from tests.references import fan
from tests.references.comparing import relative


def test_each_scale_is_a_mean_with_zeros_beyond_the_map() -> None:
    """At the corner 5 of 9 tokens are beyond it, and of the largest scale 8."""
    rng = np.random.default_rng(0)
    layer = layers.TokenAwarePooling(4, scales=4, rngs=nnx.Rngs(0), place=layers.Place(num_heads=2))
    x = rng.standard_normal((1, 3, 5, 4))
    weights = rng.random((1, 3, 5, 4))
    expected = np.zeros_like(x)
    for row, column, scale in np.ndindex(3, 5, 4):
        around = [(row + i * scale, column + j * scale) for i in (-1, 0, 1) for j in (-1, 0, 1)]
        mean = sum(x[0, i, j] for i, j in around if 0 <= i < 3 and 0 <= j < 5) / 9
        expected[0, row, column] += weights[0, row, column, scale] * mean
    found = layer.pooled(jnp.asarray(x, jnp.float32), jnp.asarray(weights, jnp.float32))
    assert relative(found, expected) < 1e-6
    with pytest.raises(ValueError, match="scales must be at least 1, that of the token itself; got 0"):
        layers.TokenAwarePooling(4, scales=0, rngs=nnx.Rngs(0), place=layers.Place(num_heads=2))


def test_the_loss_is_the_authors() -> None:
    recorded = np.load(fan.PATH)["diversity"] * (1 + 1e-6)  # of one layer, which they count as so much more
    assert 0.1 < recorded < 0.9
    weights = jnp.asarray(fan.attention().mean(1))
    assert relative(attention_diversity(weights), recorded) < 1e-6
    # Of rows that are all alike it is 1, and of even weights nothing is compared.
    alike = jnp.broadcast_to(jnp.asarray([0.6, 0.4, 0.0, 0.0, 0.0]), (1, 5, 5))
    assert float(attention_diversity(alike)) == pytest.approx(1)
    assert float(attention_diversity(jnp.full((1, 5, 5), 0.2))) == 0


def test_it_is_sown_and_padding_does_not_change_it() -> None:
    rng = np.random.default_rng(1)
    layer = layers.DiverseAttention(8, num_heads=2, depth=2, threshold=0.5, rngs=nnx.Rngs(0))
    layer.query.kernel.set_value(50 * layer.query.kernel[...])
    x = rng.standard_normal((2, 9, 8)).astype(np.float32)
    padded = np.concatenate([x, np.full((2, 3, 8), np.nan, np.float32)], 1)
    mask = np.arange(12)[None].repeat(2, 0) < 9

    def sown(x: np.ndarray, mask: np.ndarray | None) -> jax.Array:
        with layers.collecting(layers.AuxLoss) as found:
            layer(jnp.asarray(x), Tokens(None if mask is None else jnp.asarray(mask)))
        return next(iter(found.named(layer).values()))

    q, (k, _) = layer.queries(jnp.asarray(x), None), layer.keys_and_values(jnp.asarray(x), None)
    weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k) / 2, -1).mean(1)
    expected = float(attention_diversity(weights, threshold=0.5)) / 2
    assert expected > 0.1
    assert float(sown(x, None)) == pytest.approx(expected, rel=1e-5)
    assert float(sown(padded, mask)) == pytest.approx(expected, rel=1e-5)
