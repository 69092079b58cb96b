"""Patch embedding, stems and depth-wise convolution equal the general convolution."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from flax import nnx

from layers import ConvStem, PatchEmbed
from layers.depthwise import DepthwiseConv
from tests.layers.mixer_cases import relative

RNG = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def test_depthwise_module_equals_a_grouped_conv_of_the_same_parameters() -> None:
    ours = DepthwiseConv(4, 3, strides=2, rngs=nnx.Rngs(0))
    theirs = nnx.Conv(4, 4, (3, 3), strides=2, padding=1, feature_group_count=4, rngs=nnx.Rngs(0))
    ours.bias[...] = normal(4)
    theirs.kernel[...], theirs.bias[...] = ours.kernel[...], ours.bias[...]
    x = normal(1, 7, 8, 4)
    assert relative(ours(x), theirs(x)) < 1e-5


def test_patch_embedding_equals_a_convolution() -> None:
    ours = PatchEmbed(4, 3, 6, rngs=nnx.Rngs(0))
    theirs = nnx.Conv(3, 6, (4, 4), strides=4, padding="VALID", rngs=nnx.Rngs(0))
    ours.bias[...] = normal(6)
    theirs.kernel[...], theirs.bias[...] = ours.kernel[...], ours.bias[...]
    x = normal(2, 8, 12, 3)
    assert ours(x).shape == (2, 2, 3, 6)
    assert relative(ours(x), theirs(x)) < 1e-5


def test_patch_embedding_names_the_divisor() -> None:
    with pytest.raises(ValueError, match="9x8 can't be cut into 4x4 patches: both sides must be divisible by 4"):
        PatchEmbed(4, 3, 6, rngs=nnx.Rngs(0))(normal(1, 9, 8, 3))


@pytest.mark.parametrize("size", [16, 17])
def test_each_convolution_of_a_stem_halves_rounding_up(size: int) -> None:
    stem = ConvStem(3, (4, 6), rngs=nnx.Rngs(0))
    assert jax.eval_shape(lambda x: nnx.clone(stem)(x), normal(1, size, size, 3)).shape == (1, -(-size // 4), -(-size // 4), 6)
