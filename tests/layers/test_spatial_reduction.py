"""Attention to a reduced map, and the pooling of maps of any size."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

import layers
from layers import ConvMLP, Place
from layers.pool import adaptive_average_pool
from tests.compilation import program
from tests.layers.mixer_cases import FEATURES, HEADS, relative


def _map(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((2, *shape, FEATURES)).astype(np.float32)


@pytest.mark.parametrize("options", [{"stride": 2}, {"pool": 3}])
def test_padding_changes_nothing_where_patches_agree(options: Any) -> None:
    """A map in a larger one, at multiples of the stride: the pool is over real tokens, whose parts are then others, so
    only finite.
    """
    mixer = layers.create_mixer(
        "spatial_reduction", FEATURES, place=Place(num_heads=HEADS), rngs=nnx.Rngs(0), **options
    )
    x = _map(6, 8)
    mask = np.ones(x.shape[:3], bool)
    mask[:, 4:] = mask[:, :, 6:] = False
    noise = np.where(mask[..., None], x, np.nan)
    whole, small = np.asarray(program(mixer)(noise, mask))[:, :4, :6], np.asarray(program(mixer)(x[:, :4, :6]))
    assert np.isfinite(whole).all()
    if "stride" in options:
        assert relative(whole, small) < 1e-5


def test_a_map_smaller_than_a_patch_is_refused() -> None:
    mixer = layers.create_mixer("spatial_reduction", FEATURES, stride=8, place=Place(num_heads=HEADS), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="a map of 4x16 tokens can't be reduced by 8: the image must be larger"):
        mixer(_map(4, 16))


@pytest.mark.parametrize(("size", "grid"), [((7, 6), (3, 4)), ((3, 14), (7, 7)), ((5, 5), (1, 5))])
def test_adaptive_pool_is_the_mean_of_its_parts(size: tuple[int, int], grid: tuple[int, int]) -> None:
    x = _map(*size)
    mask = np.random.default_rng(1).random((2, *size)) < 0.7
    whole, _ = adaptive_average_pool(x, grid)
    masked, share = adaptive_average_pool(np.where(mask[..., None], x, 0), grid, mask)
    for i, j in np.ndindex(*grid):
        part = (
            slice(None),
            *(
                slice(at * n // count, -(-(at + 1) * n // count))
                for at, n, count in zip((i, j), size, grid, strict=True)
            ),
        )
        np.testing.assert_allclose(whole[:, i, j], x[part].mean((1, 2)), atol=1e-6)
        for row in range(2):
            real = x[part][row][mask[part][row]]
            assert bool(share[row, i, j] > 0) == bool(len(real))
            np.testing.assert_allclose(masked[row, i, j], real.mean(0) if len(real) else np.zeros(FEATURES), atol=1e-6)


def test_the_convolution_of_an_mlp_does_not_read_padding() -> None:
    mlp, x = ConvMLP(FEATURES, 2 * FEATURES, rngs=nnx.Rngs(0)), _map(5, 6)
    mask = np.ones(x.shape[:3], bool)
    mask[:, 4:] = mask[:, :, 4:] = False
    found = jax.jit(lambda x: mlp(x, mask))(np.where(mask[..., None], x, 9))
    assert relative(found[:, :4, :4], mlp(x[:, :4, :4])) < 1e-5
