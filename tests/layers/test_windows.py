"""Windows of a grid: shifted, padded, as wide as the grid."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import layers
from layers import Place, Tokens
from layers.position import RelativePositionBias
from layers.windows import Windowed
from tests.compilation import program
from tests.layers.mixer_cases import FEATURES, GRID, HEADS, relative

TOKENS = GRID[0] * GRID[1]


def _windowed(**options: Any) -> Any:
    return layers.create_mixer("windowed", FEATURES, place=Place(num_heads=HEADS), rngs=nnx.Rngs(0), **options)


def _inputs(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((2, *shape, FEATURES)).astype(np.float32)


@pytest.mark.parametrize(
    ("window", "shift"),
    [((4, 4), (2, 2)), ((3, 2), (1, 0)), ((2, 6), (1, 3)), ((None, 2), (0, 1)), ((7, None), (3, 0)), ((9, 3), (4, 2))],
)
def test_shifted_windows_are_attention_between_neighbors(window: Any, shift: Any) -> None:
    """Tokens see each other whose rows and columns are of one group, the groups being counted from the shift: nothing
    comes around.
    """
    mixer, x = _windowed(window=window, shift=shift), _inputs(*GRID)

    def groups(size: int, side: int | None, moved: int) -> np.ndarray:
        return np.zeros(size, int) if side is None or side >= size else (np.arange(size) - moved) // side

    rows, columns = (groups(*sizes) for sizes in zip(GRID, window, shift, strict=True))
    ids = jnp.asarray((100 * rows[:, None] + columns).reshape(1, TOKENS), jnp.int32)
    expected = program(mixer.inner.inner)(x.reshape(2, TOKENS, FEATURES), Tokens(segment_ids=ids))
    assert relative(program(mixer)(x), expected.reshape(x.shape)) < 1e-5


def test_segments_of_the_caller_stay_apart() -> None:
    """Those that are given, in addition to the sides of the grid."""
    mixer, x = _windowed(window=4, shift=2), _inputs(8, 8)
    ids = jnp.asarray(np.broadcast_to(np.arange(8) // 3, (1, 8, 8)), jnp.int32)
    changed = x.copy()
    changed[:, :, 3:] += 1
    mix = program(mixer)
    before, after = (np.asarray(mix(a, Tokens(segment_ids=ids))) for a in (x, changed))
    np.testing.assert_allclose(before[:, :, :3], after[:, :, :3], atol=1e-6)
    assert relative(before[:, :, 3:6], after[:, :, 3:6]) > 1e-2


def test_zeros_are_attended_to_and_padding_is_not() -> None:
    x = _inputs(7, 6)
    whole = np.pad(x, ((0, 0), (0, 1), (0, 2), (0, 0)))
    zeros, masked = (program(_windowed(window=4, shift=2, **more)) for more in ({"padding": "zeros"}, {}))
    assert relative(zeros(x), zeros(whole)[:, :7, :6]) < 1e-6
    real = np.zeros(whole.shape[:3], bool)
    real[:, :7, :6] = True
    assert relative(masked(x), zeros(whole, real)[:, :7, :6]) < 1e-6
    assert relative(masked(x), zeros(x)) > 1e-2
    # What the caller says is padding stays so.
    mask = np.ones(x.shape[:3], bool)
    mask[:, 6:] = False
    noise = np.where(mask[..., None], x, 7)
    np.testing.assert_allclose(zeros(x, mask)[:, :6], zeros(noise, mask)[:, :6], atol=1e-6)


def test_clamped_windows_are_no_larger_than_the_grid() -> None:
    x = _inputs(3, 5)
    clamped, whole = _windowed(window=7, shift=3, clamp=True), _windowed(window=(3, 5))
    assert relative(*jax.jit(lambda x: (clamped(x), whole(x)))(x)) < 1e-6


def test_a_bias_fits_stripes_of_the_grid_that_the_model_has() -> None:
    inner = {"name": "attention", "bias": lambda num_heads, rngs: RelativePositionBias((7, 2), num_heads, rngs=rngs)}
    place = Place(num_heads=HEADS, grid=GRID)
    mixer = layers.create_mixer("windowed", FEATURES, place=place, rngs=nnx.Rngs(0), window=(None, 2), inner=inner)
    assert jax.eval_shape(lambda x: mixer(x), _inputs(*GRID)).shape == (2, *GRID, FEATURES)


def test_a_shift_needs_segments() -> None:
    with pytest.raises(
        ValueError, match="BilevelRoutingAttention does not honor segment_ids, which keep them apart: give shift=0"
    ):
        Windowed(FEATURES, window=4, shift=2, inner="bilevel_routing", place=Place(num_heads=HEADS), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match='padding is "masked" or "zeros", got \'same\''):
        _windowed(padding="same")
