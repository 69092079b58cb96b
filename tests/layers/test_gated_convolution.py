"""The gated convolution of maps that are partly padding, and what it refuses."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from flax import nnx

import layers
from tests.layers.mixer_cases import relative


def test_a_padded_map_gives_what_the_smaller_one_gives() -> None:
    mixer = layers.GatedConvolution(8, kernel_size=3, rngs=nnx.Rngs(0))
    mixer.value.bias.set_value(np.ones(21, np.float32))  # what a mask leaves out is not 0 by itself
    x = np.random.default_rng(0).standard_normal((1, 5, 6, 8)).astype(np.float32)
    mask = np.zeros((1, 5, 6), bool)
    mask[:, :3, :4] = True
    whole, part, small = jax.jit(lambda x: (mixer(x), mixer(x, mask), mixer(x[:, :3, :4])))(x)
    assert relative(part[:, :3, :4], small) < 1e-5
    assert relative(whole[:, :3, :4], small) > 1e-2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"conv_ratio": 3.0}, "the convolution mixes 1 to all 21 hidden features; conv_ratio 3.0 is 24 of them"),
        ({"kernel_size": 4}, "kernel_size must be odd, got 4"),
    ],
)
def test_what_has_no_place_is_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        layers.GatedConvolution(8, **options, rngs=nnx.Rngs(0))
