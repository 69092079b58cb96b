"""MLPs across tokens on other grids than their own, and what they refuse; timm's models tell the rest."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import layers
from layers.token_mlp import TokenLinear
from tests.layers.mixer_cases import relative


def smooth(rows: int, columns: int) -> np.ndarray:
    """A plane over the unit square, sampled in the middle of each cell."""
    y, x = (np.arange(rows) + 0.5) / rows, (np.arange(columns) + 0.5) / columns
    return (1 + 0.5 * y[:, None] + 0.3 * x).reshape(-1).astype(np.float32)


@pytest.mark.parametrize("kind", ["reads", "writes", "both"])
def test_another_grid_has_the_same_function_of_places(kind: str) -> None:
    """Weights that are planes over the image: sums over it, and what is written to it, are those of places and keep
    their size.
    """
    own, other = (8, 6), (12, 9)
    sizes: dict[str, Any] = {"reads": {"outputs": 1}, "writes": {"inputs": 1}, "both": {}}[kind]
    layer = TokenLinear(own, **sizes, rngs=nnx.Rngs(0))
    plane, one = smooth(*own), np.ones(1, np.float32)
    layer.kernel.set_value(jnp.asarray(np.outer(one if kind == "writes" else plane, one if kind == "reads" else plane)))
    layer.bias.set_value(jnp.asarray(one if kind == "reads" else plane))
    outputs = {}
    for grid in (own, other):
        x = np.ones((1, 1 if kind == "writes" else grid[0] * grid[1], 2), np.float32)
        outputs[grid] = np.asarray(jax.jit(layer, static_argnums=1)(x, grid))
    if kind == "reads":
        assert relative(outputs[other], outputs[own]) < 1e-4
        return
    inner = [outputs[grid][0, :, 0].reshape(grid)[2:-2, 2:-2] for grid in (own, other)]  # away from the border
    by_place = [smooth(*grid).reshape(grid)[2:-2, 2:-2] for grid in (own, other)]
    ratios = [a / b for a, b in zip(inner, by_place, strict=True)]
    assert np.ptp(np.concatenate([ratio.ravel() for ratio in ratios])) < 1e-3 * ratios[0].mean()


def test_an_odd_number_of_hidden_features_is_refused() -> None:
    with pytest.raises(ValueError, match=r"9 hidden features can't be halved"):
        layers.SpatialGating(3, expansion=3, rngs=nnx.Rngs(0))
