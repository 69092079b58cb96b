"""Transformer-XL's attention: what a token sees, and the constant size of what is kept."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from layers import TransformerXLAttention, collecting
from layers.module import Diagnostic


def make(**options: int) -> TransformerXLAttention:
    init = nnx.initializers.normal(0.3)
    return TransformerXLAttention(12, num_heads=2, kernel_init=init, **options, rngs=nnx.Rngs(0))


def test_what_a_token_sees() -> None:
    """Its segment up to itself, and the memory before the segment."""
    mixer = make(segment=4, memory=3)
    x = np.random.default_rng(0).standard_normal((1, 13, 12)).astype(np.float32)
    with collecting(Diagnostic, name="attention") as sown:
        mixer(jnp.asarray(x))
    (weights,) = sown.named(mixer).values()
    i, j = np.mgrid[:13, :13]
    np.testing.assert_array_equal(np.asarray(weights)[0].min(0) > 0, (j <= i) & (j >= i // 4 * 4 - 3))


def test_the_state_is_as_long_as_segment_and_memory() -> None:
    state = jax.eval_shape(lambda: make(segment=4, memory=3).init_state(2, 1000))
    assert state.key_by_head.shape[2] == 7


def test_refusal() -> None:
    with pytest.raises(ValueError, match="a segment has at least 1 token"):
        make(segment=0)
