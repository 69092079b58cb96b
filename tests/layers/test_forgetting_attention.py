"""Forgetting attention over thousands of tokens, against its equation in float64."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest
from flax import nnx

import layers
from layers import flatten
from tests.compilation import program
from tests.layers.mixer_cases import relative

LENGTH, FEATURES, SEEN = 4096, 4, 160  # beyond SEEN tokens, gates of about 1/2 leave weights below 1e-30


@functools.cache
def forgetting() -> layers.ForgettingAttention:
    return layers.ForgettingAttention(FEATURES, num_heads=1, rngs=nnx.Rngs(0))


@functools.cache
def text() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((1, LENGTH, FEATURES)).astype(np.float32)


@functools.cache
def exact() -> np.ndarray:
    """The equation, over the SEEN tokens before each."""
    weights = {name: np.asarray(x[...], np.float64) for name, x in flatten(forgetting(), nnx.Param).items()}
    x = text()[0].astype(np.float64)
    q, k, v = (x @ weights[f"{name}.kernel"] for name in ("query", "key", "value"))
    gates = -np.logaddexp(0, -(x @ weights["forget.kernel"][:, 0] + weights["forget.bias"][0]))
    sums = np.cumsum(gates)
    assert sums[-1] < -2500
    at = np.arange(LENGTH)[:, None] - np.arange(SEEN)
    logits = np.einsum("id,isd->is", q, k[at]) * FEATURES**-0.5 + sums[:, None] - sums[at]
    seen = np.exp(np.where(at >= 0, logits, -np.inf))
    return np.einsum("is,isd->id", seen / seen.sum(1, keepdims=True), v[at]) @ weights["out.kernel"]


def test_weights_of_a_long_text_keep_their_digits() -> None:
    assert relative(program(forgetting())(text())[0], exact()) < 5e-6


@pytest.mark.parametrize("size", [LENGTH // 2, 1000])
def test_a_long_text_read_in_pieces_keeps_them(size: int) -> None:
    mixer = forgetting()
    extend, state, parts = program(mixer, "extend"), mixer.init_state(1, LENGTH), []
    for start in range(0, LENGTH, size):
        y, state = extend(text()[:, start : start + size], state)
        parts.append(jax.device_get(y)[0])
    assert relative(np.concatenate(parts), exact()) < 5e-6
