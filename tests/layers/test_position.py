"""Positions: rotary, relative bias, tables and their resampling."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from layers.position import (
    LearnedPositions,
    RelativePositionBias,
    Rotary,
    grid_positions,
    resample_table,
    rotate,
    rotation,
    sincos_table,
)

RNG = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("axes", [1, 2])
def test_rotary_scores_depend_on_distance_alone(axes: int, interleaved: bool) -> None:
    q, k = normal(1, 1, 1, 8), normal(1, 1, 1, 8)

    def score(at: list[int], to: list[int]) -> float:
        turned = [
            rotate(jnp.asarray(x), jnp.asarray([[p]], jnp.int32), base=100.0, interleaved=interleaved)
            for x, p in ((q, at), (k, to))
        ]
        return float(jnp.sum(turned[0] * turned[1]))

    shift = np.array([7, 11][:axes])
    at, to = np.array([3, 1][:axes]), np.array([1, 5][:axes])
    assert score(at + shift, to + shift) == pytest.approx(score(at, to), rel=1e-4)
    assert abs(score(at + shift, to) - score(at, to)) > 1e-3


def test_rotary_keeps_lengths_position_zero_and_the_unturned_rest() -> None:
    x = normal(2, 5, 3, 8)
    y = rotate(jnp.asarray(x), jnp.arange(5)[None], dimensions=4)
    np.testing.assert_allclose(np.linalg.norm(y, axis=-1), np.linalg.norm(x, axis=-1), rtol=1e-5)
    np.testing.assert_array_equal(y[:, 0], x[:, 0])
    np.testing.assert_array_equal(y[..., 4:], x[..., 4:])


@pytest.mark.parametrize("base", [100.0, 10_000.0, 500_000.0])
def test_rotary_angles_hold_at_every_position(base: float) -> None:
    """As in float64 up to the last int32, where float32 has lost the fraction of a turn long since; and so do negative
    positions.
    """
    far = RNG.integers(0, 2**31 - 1, 4000)
    near = np.concatenate(
        [np.arange(4096), 2 ** np.arange(31), 2 ** np.arange(1, 32) - 1, [10**6, 10**8, 10**8 + 1, 2**31 - 1]]
    )
    positions = np.concatenate([near, far, -near[:100], -far[:100]]).astype(np.int32)
    frequencies = base ** (-np.arange(32) / 32)
    cos, sin = rotation(jnp.asarray(positions), frequencies)
    angle = positions[:, None].astype(np.float64) * frequencies
    np.testing.assert_allclose(cos, np.cos(angle), atol=1e-5)
    np.testing.assert_allclose(sin, np.sin(angle), atol=1e-5)
    np.testing.assert_allclose(
        rotation(jnp.float32([0.5, 2.0]), frequencies)[0], np.cos(np.outer([0.5, 2.0], frequencies)), atol=1e-6
    )


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("axes", [1, 2])
def test_rotary_scores_are_the_same_far_out(axes: int, interleaved: bool) -> None:
    q, k = normal(1, 1, 1, 8), normal(1, 1, 1, 8)

    def score(start: int) -> float:
        at = [jnp.full((1, 1, axes) if axes > 1 else (1, 1), start + step, jnp.int32) for step in (7, 2)]
        a, b = (rotate(jnp.asarray(x), p, interleaved=interleaved) for x, p in zip((q, k), at, strict=True))
        return float(jnp.sum(a * b))

    for start in (10**6, 2**24, 10**8, 2**31 - 8):
        assert score(start) == pytest.approx(score(0), abs=1e-4)


def test_rotary_divides_the_angles_of_all_pairs_or_of_slow_ones() -> None:
    plain = Rotary(500_000.0).frequencies(32)
    np.testing.assert_allclose(Rotary(500_000.0, factor=8.0).frequencies(32), plain / 8)
    scaled = Rotary.of({"base": 500_000.0, "factor": 8.0, "original_length": 8192})
    assert scaled is not None
    turns, kept = 8192 * plain / (2 * np.pi), scaled.frequencies(32) / plain
    np.testing.assert_allclose(kept[turns > 4], 1)
    np.testing.assert_allclose(kept[turns < 1], 1 / 8)
    between = kept[(turns > 1) & (turns < 4)]
    assert len(between) > 1
    assert ((between > 1 / 8) & (between < 1)).all()


def test_rotary_refuses_what_makes_no_pairs() -> None:
    with pytest.raises(ValueError, match="over 2 axes needs a number of features divisible by 4, got 6"):
        rotate(jnp.zeros((1, 1, 1, 6)), jnp.zeros((1, 1, 2), jnp.int32))


def test_relative_bias_depends_on_offsets_alone() -> None:
    module = RelativePositionBias((2, 3), 2, rngs=nnx.Rngs(0))
    cells = jnp.asarray(grid_positions(2, 3))[None]
    bias = np.asarray(module(cells, cells))
    assert bias.shape == (1, 2, 6, 6)
    assert bias[0, 0, 0, 1] == bias[0, 0, 4, 5]  # one column to the right, in either row
    assert bias[0, 0, 0, 1] != bias[0, 0, 1, 0]
    assert np.unique(bias[0, 0]).size == 3 * 5
    with pytest.raises(ValueError, match="2x3 window got 5 queries"):
        module(cells[:, :5], cells)


def test_sincos_table_is_quarters_of_rows_and_columns() -> None:
    table = sincos_table((3, 4), 8)
    assert table.shape == (3, 4, 8)
    np.testing.assert_array_equal(table[0, :, :4], table[2, :, :4])  # columns alone
    np.testing.assert_array_equal(table[:, 0, 4:], table[:, 3, 4:])  # rows alone
    np.testing.assert_allclose(table[2, 3, 0], np.sin(3), rtol=1e-6)
    np.testing.assert_allclose(table[2, 3, 6], np.cos(2), rtol=1e-6)
    with pytest.raises(ValueError, match="divisible by 4, got 6"):
        sincos_table((2, 2), 6)


def test_tables_are_resampled() -> None:
    table = normal(4, 4, 3)
    assert resample_table(jnp.asarray(table), (4, 4)) is not None
    np.testing.assert_array_equal(resample_table(jnp.asarray(table), (4, 4)), table)
    ramp = np.broadcast_to(np.arange(8, dtype=np.float32)[:, None, None], (8, 8, 1))
    half = np.asarray(resample_table(jnp.asarray(ramp), (4, 4)))
    np.testing.assert_allclose(half[1:3, :, 0], [[2.5] * 4, [4.5] * 4], atol=0.05)  # between the cells that it replaces
    module = LearnedPositions((4, 4), 3, rngs=nnx.Rngs(0))
    assert module((6, 2)).shape == (6, 2, 3)
