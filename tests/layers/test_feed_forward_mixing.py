"""Mixing by an MLP of a whole sentence against its equation in float64, prefix by prefix; sizes; refusals."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import layers
from layers import FeedForwardMixing, flatten
from layers.making import abstract
from tests.compilation import OPTIMIZED
from tests.layers.mixer_cases import relative

MOST, FEATURES, HIDDEN, LENGTH = 9, 6, 5, 7
RNG = np.random.default_rng(0)
X = RNG.standard_normal((2, LENGTH, FEATURES)).astype(np.float32) + 0.5
Weights = dict[str, np.ndarray]


def normalized(x: np.ndarray, scale: np.ndarray, shift: np.ndarray) -> np.ndarray:
    return (x - x.mean()) / np.sqrt(x.var() + 1e-5) * scale + shift


def network(x: np.ndarray, w: Weights) -> np.ndarray:
    """What the MLP makes of one padded sentence (MOST, FEATURES)."""
    hidden = normalized(x.ravel(), w["scale"].ravel(), w["shift"].ravel()) @ w["up"].reshape(-1, HIDDEN) + w["up_bias"]
    hidden = normalized(np.where(hidden > 0, hidden, 0.01 * hidden), w["norm.scale"], w["norm.bias"])
    return hidden @ w["down"] + w["down_bias"]


def expected(x: np.ndarray, w: Weights, causal: bool) -> np.ndarray:
    padded = np.concatenate([x, np.zeros((MOST - len(x), FEATURES))])
    if not causal:
        return network(padded, w)[: len(x)]
    prefixes = [np.where(np.arange(MOST)[:, None] <= t, padded, 0) for t in range(len(x))]
    return np.stack([network(prefix, w) for prefix in prefixes])


@pytest.mark.parametrize("causal", [False, True])
def test_the_equation(causal: bool) -> None:
    mixer = FeedForwardMixing(FEATURES, max_length=MOST, hidden=HIDDEN, causal=causal, rngs=nnx.Rngs(0))
    drawn = {name: RNG.standard_normal(a.shape).astype(np.float32) for name, a in flatten(mixer).items()}
    layers.assign(mixer, {name: jnp.asarray(a) for name, a in drawn.items()})
    weights = {name: a.astype(np.float64) for name, a in drawn.items()}
    direction, cotangent = (RNG.standard_normal((LENGTH, FEATURES)) for _ in range(2))
    graph, state = nnx.split(mixer)

    @jax.jit
    def run(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        y, pull = jax.vjp(lambda x: nnx.merge(graph, state)(x), x)
        return y, pull(jnp.broadcast_to(jnp.asarray(cotangent, jnp.float32), y.shape))[0]

    y, gradient = run(jnp.asarray(X))
    exact = X.astype(np.float64)
    assert max(relative(y[row], expected(exact[row], weights, causal)) for row in (0, 1)) < 1e-5
    ahead, behind = (expected(exact[0] + step * direction, weights, causal) for step in (1e-6, -1e-6))
    slope = ((ahead - behind) * cotangent).sum() / 2e-6
    assert abs(float((gradient[0] * direction).sum()) / slope - 1) < 1e-4


# Counted in github.com/vulus98/Rethinking-attention (commit 983b8c7, models/definitions/ALR_FF.py): of FFNetwork_XS,
# _S, _M and _L, and of their forms for decoders.
COUNTS = {256: (339_275, 176_203), 128: (659_350, 339_478), 8: (10_261_600, 5_237_728), 2: (40_988_800, 20_912_128)}


@pytest.mark.parametrize("share", COUNTS)
def test_sizes_of_the_paper(share: int) -> None:
    for causal, count in zip((False, True), COUNTS[share], strict=True):
        options = {"max_length": 50, "hidden": 50 * 128 // share, "causal": causal}
        make = functools.partial(layers.create_mixer, {"name": "feed_forward_mixing", **options}, 128)
        assert layers.parameter_count(abstract(lambda rngs, make=make: make(rngs=rngs))) == count


@pytest.mark.parametrize("causal", [False, True])
def test_bfloat16_as_compiled_for_users(causal: bool) -> None:
    """Several rows: XLA for CPUs has no such product for all orders of axes."""
    x = np.random.default_rng(1).standard_normal((2, 8, 64)).astype(np.float32)
    make = functools.partial(FeedForwardMixing, 64, max_length=8, causal=causal)
    exact, low = make(rngs=nnx.Rngs(0)), make(dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    run = jax.jit(lambda mixer, x: mixer(x), compiler_options=OPTIMIZED)
    assert relative(np.asarray(run(low, x), np.float32), np.asarray(exact(x))) < 0.03


def test_refusals() -> None:
    mixer = FeedForwardMixing(4, max_length=3, hidden=2, causal=True, rngs=nnx.Rngs(0))
    x = jnp.zeros((1, 4, 4))
    with pytest.raises(ValueError, match="has matrices for 3 tokens, got 4: make it with a larger max_length"):
        mixer(x)
    with pytest.raises(ValueError, match="has matrices for 3 tokens, got 4"):
        mixer.extend(x[:, :2], mixer.extend(x[:, :2], mixer.init_state(1))[1])
    with pytest.raises(ValueError, match="max_length and hidden are at least 1, got 0 and 1"):
        FeedForwardMixing(4, max_length=0, hidden=1, rngs=nnx.Rngs(0))
