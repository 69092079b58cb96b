"""Focal modulation of maps that are partly padding."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from flax import nnx

import layers
from layers import Diagnostic, collecting
from tests.layers.mixer_cases import relative


def test_a_padded_map_gives_what_the_smaller_one_gives() -> None:
    mixer = layers.FocalModulation(8, levels=2, rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).standard_normal((1, 5, 6, 8)).astype(np.float32)
    mask = np.zeros((1, 5, 6), bool)
    mask[:, :3, :4] = True
    whole, part, small = jax.jit(lambda x: (mixer(x), mixer(x, mask), mixer(x[:, :3, :4])))(x)
    assert relative(part[:, :3, :4], small) < 1e-5
    assert relative(whole[:, :3, :4], small) > 1e-2


def test_gates_are_reported() -> None:
    mixer = layers.FocalModulation(8, levels=2, rngs=nnx.Rngs(0))
    x = np.ones((1, 3, 4, 8), np.float32)
    with collecting(Diagnostic) as sown:
        mixer(x)
    np.testing.assert_allclose(sown.named(mixer)["gates"], mixer.gates(x), rtol=1e-6)


def test_a_window_has_a_center() -> None:
    with pytest.raises(ValueError, match="the window odd, so that it has a center; got 2 and 4"):
        layers.FocalModulation(8, window=4, rngs=nnx.Rngs(0))
