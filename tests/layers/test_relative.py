"""Relative position biases: against the papers' equations in numpy, and T5's buckets against transformers."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from layers import MultiHeadAttention, Tokens
from layers.attention.relative import BucketedDistances, DistancePenalty, create_relative
from pallas_kernels import masks
from tests.compilation import program

HEADS, WIDTH, LENGTH = 4, 8, 19
X = np.random.default_rng(0).standard_normal((2, LENGTH, HEADS * WIDTH)).astype(np.float32)


def layer(relative: Any, **options: Any) -> MultiHeadAttention:
    made = MultiHeadAttention(HEADS * WIDTH, num_heads=HEADS, relative=relative, rngs=nnx.Rngs(1), **options)
    if table := getattr(made.relative, "table", None):
        table[...] = jnp.asarray(np.random.default_rng(2).standard_normal(table.shape), jnp.float32)
    return made


def number(parameter: Any) -> np.ndarray:
    return np.asarray(parameter[...], np.float64)


def by_hand(made: MultiHeadAttention, score: Any) -> np.ndarray:
    """Attention in float64 from the layer's queries, keys and values; ``score(logits, q, offset)`` changes logits."""
    q, k, v = (np.asarray(a, np.float64) for a in (made.query_heads(X), *made.key_value_heads(X)))
    offset = np.arange(LENGTH) - np.arange(LENGTH)[:, None]
    logits = score(np.einsum("bqhd,bkhd->bhqk", q, k) * WIDTH**-0.5, q, offset)
    logits = np.where((offset <= 0) | (not made.causal), logits, -np.inf)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    heads = np.einsum("bhqk,bkhd->bqhd", weights / weights.sum(-1, keepdims=True), v)
    return heads.reshape(X.shape) @ np.asarray(made.out.kernel[...], np.float64) + np.asarray(made.out.bias[...])


@pytest.mark.parametrize("causal", [True, False])
def test_scores_are_those_of_the_papers(causal: bool) -> None:
    def table(made: MultiHeadAttention) -> np.ndarray:
        return np.asarray(made.relative.table[...], np.float64)

    def clipped(offset: np.ndarray, reach: int) -> np.ndarray:
        return np.clip(offset, -reach, 0 if causal else reach) + reach

    made = layer("alibi", causal=causal)
    slopes = 2.0 ** -np.array([2.0, 4.0, 6.0, 8.0])[:, None, None]
    np.testing.assert_allclose(program(made)(X), by_hand(made, lambda s, q, o: s - slopes * np.abs(o)), atol=1e-5)
    made = layer({"name": "learned", "reach": 5}, causal=causal)
    np.testing.assert_allclose(
        program(made)(X), by_hand(made, lambda s, q, o: s + table(made)[:, clipped(o, 5)]), atol=1e-5
    )
    made = layer({"name": "keys", "reach": 3}, causal=causal)
    keys = table(made)
    products = lambda s, q, o: s + np.einsum("bqhd,qkd->bhqk", q, keys[clipped(o, 3)]) * WIDTH**-0.5  # noqa: E731
    np.testing.assert_allclose(program(made)(X), by_hand(made, products), atol=1e-5)


@pytest.mark.parametrize("kernel", ["log", "power"])
def test_kerple(kernel: str) -> None:
    """At distance 0 too, where a power has no slope in its exponent; numbers out of bounds are as those at them."""
    made = layer({"name": "kerple", "kernel": kernel}, causal=False)
    made.relative.rate[...] = jnp.asarray([0.3, 0.8, 5.0, -1.0] if kernel == "power" else [0.3, 0.8, -1.0, 9.0])
    weight, rate = (number(p)[:, None, None] for p in (made.relative.weight, made.relative.rate))
    assert 0 <= weight.min() < weight.max() < 2
    rate = np.clip(rate, 0.01, 2.0 if kernel == "power" else None)

    def score(logits: np.ndarray, q: np.ndarray, offset: np.ndarray) -> np.ndarray:
        far = np.abs(offset)
        return logits - weight * (far**rate if kernel == "power" else np.log1p(rate * far))

    np.testing.assert_allclose(program(made)(X), by_hand(made, score), atol=1e-5)
    slopes = nnx.jit(nnx.grad(lambda made: jnp.sum(made(X) ** 2)))(made)["relative"]
    assert all(np.isfinite(slope[...]).all() and (slope[...] != 0).all() for slope in slopes.values())


def test_fire() -> None:
    """Also where documents share a row: places are those in a document."""
    made = layer({"name": "fire", "threshold": 6.0}, causal=True)
    fire = made.relative
    fire.scale[...], fire.threshold[...] = jnp.float32(-0.7), jnp.float32(0.9)
    fire.hidden.bias[...] = jnp.linspace(-1, 1, 32)

    def score(logits: np.ndarray, q: np.ndarray, offset: np.ndarray) -> np.ndarray:
        place = np.maximum(np.arange(LENGTH), 5.4)[:, None]
        ratio = np.log1p(0.7 * np.maximum(-offset, 0)) / np.log1p(0.7 * place)
        hidden = np.maximum(ratio[..., None] * number(fire.hidden.kernel)[0] + number(fire.hidden.bias), 0)
        return logits + np.moveaxis(hidden @ number(fire.out.kernel) + number(fire.out.bias), -1, 0)

    np.testing.assert_allclose(program(made)(X), by_hand(made, score), atol=1e-5)
    ids = np.repeat(np.arange(2), [12, LENGTH - 12])[None]
    both, last = jax.jit(lambda x: (made(x, Tokens(segment_ids=jnp.asarray(ids))), made(x[:, 12:])))(X)
    np.testing.assert_allclose(both[:, 12:], last, atol=1e-5)

    def pieces(x: jax.Array) -> jax.Array:
        state, found = made.init_state(len(x), LENGTH), []
        for piece in (x[:, :7], x[:, 7:8], x[:, 8:]):
            y, state = made.extend(piece, state)
            found.append(y)
        return jnp.concatenate(found, 1)

    np.testing.assert_allclose(jax.jit(pieces)(X), program(made)(X), atol=1e-5)
    with pytest.raises(ValueError, match="it needs causal=True"):
        layer("fire")


def test_slopes_of_heads_beyond_a_power_of_two() -> None:
    np.testing.assert_allclose(DistancePenalty(12).exponent(np.arange(12))[8:], [-0.5, -1.5, -2.5, -3.5])
    assert DistancePenalty(12) == DistancePenalty(12) != DistancePenalty(8)


def test_visible_and_padding_together() -> None:
    """Tokens of a segment see each other, none sees padding: as with a mask of both, and as without the padding."""
    made = MultiHeadAttention(HEADS * WIDTH, num_heads=HEADS, visible=masks.segments(8), rngs=nnx.Rngs(1))
    mask = np.arange(LENGTH) < np.array([[11], [LENGTH]])
    y, *parts = jax.jit(
        lambda x: (made(x, Tokens(jnp.asarray(mask))), made(x[:1, :8]), made(x[:1, 8:11]), made(x[1:, 16:]))
    )(X)
    np.testing.assert_allclose(y[:1, :11], jnp.concatenate(parts[:2], 1), atol=1e-5)
    np.testing.assert_allclose(y[1, 16:], parts[2][0], atol=1e-5)


def test_unknown_names_and_conflicts() -> None:
    with pytest.raises(ValueError, match=r"unknown relative='alibbi'.*alibi"):
        layer("alibbi")
    with pytest.raises(ValueError, match="both change the scores by a function"):
        layer("alibi", score=lambda x, *_: x)
    with pytest.raises(ValueError, match="there must be at least 4 buckets"):
        create_relative({"name": "buckets", "buckets": 3}, num_heads=2, head_dim=4, causal=False, rngs=nnx.Rngs(0))


@pytest.mark.reference
@pytest.mark.full
@pytest.mark.parametrize("causal", [True, False])
def test_matches_the_attention_of_t5(causal: bool) -> None:
    torch = pytest.importorskip("torch")
    from transformers import T5Config
    from transformers.models.t5.modeling_t5 import T5Attention

    config = T5Config(
        d_model=HEADS * WIDTH, d_kv=WIDTH, num_heads=HEADS, is_decoder=causal, relative_attention_max_distance=40
    )
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    theirs = T5Attention(config, has_relative_attention_bias=True, layer_idx=0).eval()
    ours = layer({"name": "buckets", "max_distance": 40}, causal=causal, scale=1.0, use_bias=False)
    for name, linear in (("query", theirs.q), ("key", theirs.k), ("value", theirs.v), ("out", theirs.o)):
        getattr(ours, name).kernel[...] = jnp.asarray(linear.weight.detach().numpy().T)
    ours.relative.table[...] = jnp.asarray(theirs.relative_attention_bias.weight.detach().numpy())
    x = np.random.default_rng(3).standard_normal((1, 100, HEADS * WIDTH)).astype(np.float32)
    mask = torch.tensor(np.where(np.tri(100, dtype=bool) | (not causal), 0.0, -1e30)[None, None], dtype=torch.float32)
    with torch.no_grad():
        expected = theirs(torch.tensor(x), mask=mask)[0].numpy()
    np.testing.assert_allclose(ours(x), expected, atol=1e-4 * np.abs(expected).max())
    offsets = np.arange(-300, 301)
    buckets = T5Attention._relative_position_bucket(torch.tensor(offsets), not causal, 32, 40).numpy()
    bucketed = ours.relative
    assert isinstance(bucketed, BucketedDistances)
    np.testing.assert_array_equal(bucketed.bucket(offsets), buckets)
