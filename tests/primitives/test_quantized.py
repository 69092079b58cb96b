"""Products with weights in fewer bits, against float64 on the host."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from primitives import quantized as module
from primitives.quantized import FORMATS, QuantizedArray, finite, quantized
from tests.tiers import tiered

RNG = np.random.default_rng(0)
# Rows of a matrix that no block divides, several blocks of each kind, and a last one that reaches back.
SHAPE, BLOCK = (70, 45), 45 * 16


def wide(array: QuantizedArray) -> np.ndarray:
    """What is meant, by NumPy in float64."""
    if array.scale is None:
        return np.asarray(array.values).view(ml_dtypes.bfloat16).astype(np.float64)
    return np.asarray(array.values, np.float64) * np.asarray(array.scale, np.float64)


@pytest.mark.parametrize("format", FORMATS)
def test_products(format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", BLOCK)
    weights = RNG.standard_normal(SHAPE).astype(np.float32) * np.exp(RNG.standard_normal(SHAPE[1])).astype(np.float32)
    matrix, table = quantized(jnp.asarray(weights), format), quantized(jnp.asarray(weights), format, -1)
    x, z = (RNG.standard_normal((3, size)).astype(np.float32) for size in SHAPE)
    for array, rows, method, expected in (
        (matrix, x, QuantizedArray.product, x @ wide(matrix)),
        (table, z, QuantizedArray.products_with_rows, z @ wide(table).T),
    ):
        y, back = jax.vjp(lambda x, array=array, method=method: method(array, x), jnp.asarray(rows))
        assert y.dtype == jnp.float32
        np.testing.assert_allclose(y, expected, atol=1e-5 * np.abs(expected).max())
        g = RNG.standard_normal(y.shape).astype(np.float32)
        slope = g @ (wide(matrix).T if array is matrix else wide(table))
        np.testing.assert_allclose(back(jnp.asarray(g))[0], slope, atol=1e-5 * np.abs(slope).max())


def test_how_far_weights_move() -> None:
    weights = RNG.standard_normal(SHAPE).astype(np.float32)
    weights[:, 0] = 0
    scale = np.where(weights.any(0), np.abs(weights).max(0) / 127, 1.0)
    array = quantized(jnp.asarray(weights), "int8")
    np.testing.assert_allclose(array.scale, scale[None], rtol=1e-6)
    assert np.abs(wide(array) - weights).max(0).max() <= (scale / 2 * (1 + 1e-5)).max()
    assert (np.abs(wide(array) - weights) <= scale / 2 * (1 + 1e-5)).all()
    np.testing.assert_array_equal(np.asarray(array.values)[:, 0], 0)
    np.testing.assert_allclose(array[...], wide(array), rtol=1e-6)
    bits = quantized(jnp.asarray(weights), "bfloat16")
    np.testing.assert_array_equal(np.asarray(bits[...]), weights.astype(ml_dtypes.bfloat16).astype(np.float32))
    assert (array.nbytes, bits.nbytes) == (weights.size + 4 * SHAPE[1], 2 * weights.size)


def test_infinite_weights_are_seen() -> None:
    weights = np.ones(SHAPE, np.float32)
    assert finite(jnp.asarray(weights))
    for value in (np.nan, np.inf, -np.inf):
        weights[3, 4] = value
        assert not finite(jnp.asarray(weights))


@pytest.mark.parametrize("format", tiered(FORMATS, lambda format: format == "int8"))
def test_entries_of_a_table(format: str) -> None:
    table = quantized(jnp.asarray(RNG.standard_normal(SHAPE), jnp.float32), format, -1)
    places = np.asarray([[0, 69, 3], [70, 5, 5]])
    found = np.asarray(table.rows(jnp.asarray(places), jnp.float32, "fill"))
    assert np.isnan(found[1, 0]).all()
    known = places < SHAPE[0]
    np.testing.assert_allclose(found[known], wide(table)[places[known]], rtol=1e-6)
