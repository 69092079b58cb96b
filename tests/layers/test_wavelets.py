"""Wavelet transforms against recorded ones of PyWavelets, and back; and the mixer that mixes their coefficients."""

from __future__ import annotations

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import layers
from layers import Mixer, Tokens
from layers.wavelets import analyzed, daubechies, lifted, lowered, rotated, synthesized
from tests.compilation import program
from tests.layers.mixer_cases import FEATURES, MixerCase, relative
from tests.references import wavelets as recorded

ARRAYS = dict(np.load(recorded.PATH))
ROWS, LENGTHS, LEVELS = recorded.rows(), recorded.LENGTHS, recorded.LEVELS
MOST = max(LENGTHS)
X = np.stack([np.pad(row, ((0, MOST - len(row)), (0, 0))) for row in ROWS])


class Unchanged(Mixer):
    """Tokens as they are."""

    honors = frozenset({"mask"})

    def __init__(self, features: int, *, rngs: nnx.Rngs):
        """No options."""

    @property
    def complexity(self) -> float:
        return 1.0

    def mix(self, x: jax.Array, tokens: Tokens) -> jax.Array:
        return x


@pytest.mark.reference
@pytest.mark.parametrize("taps", recorded.TAPS)
def test_rows_of_a_batch_have_the_coefficients_of_pywavelets(taps: int, record_property: Any) -> None:
    """Each row those of its own length."""
    filters = daubechies(taps)
    assert np.abs(filters - ARRAYS[f"{taps}/filter"]).max() < 1e-12
    low = jnp.asarray(filters[:, None].repeat(recorded.FEATURES, 1), jnp.float32)
    bands = jax.jit(lambda x, count: analyzed(x, count, low, LEVELS))(X, np.array(LENGTHS))
    difference = 0.0
    for row, length in enumerate(LENGTHS):
        got = np.concatenate([band[row, : count[row]] for band, count in bands])
        assert all((np.asarray(band[row, int(count[row]) :]) == 0).all() for band, count in bands)
        difference = max(difference, relative(got, ARRAYS[f"{taps}/{length}"]))
    about = {"reference": json.loads(str(ARRAYS["about"]))["package"], "kind": "recorded", "mapped": 0}
    record_property("parity", {**about, "architecture": f"wavelets (op, {taps} taps)", "difference": difference})
    assert difference < 1e-5


@pytest.mark.parametrize("length", [pytest.param(1, marks=pytest.mark.full), 7])
def test_a_row_of_odd_length_is_lifted_as_if_it_were_masked(length: int) -> None:
    """The last pair has no odd sample, and none may be mixed."""
    mixed = program(MixerCase("wavelet_space", "lift", causal=False).make())
    x = np.random.default_rng(0).standard_normal((1, 10, FEATURES)).astype(np.float32)
    padded = mixed(x, jnp.arange(10)[None] < length)[:, :length]
    np.testing.assert_allclose(mixed(x[:, :length]), padded, atol=1e-6)


@pytest.mark.parametrize("wavelet", ["fixed", "orthogonal", "lift"])
def test_what_is_taken_apart_is_put_together(wavelet: str) -> None:
    """By the mixer around one that changes nothing; filters of any angles are orthogonal to themselves two further."""
    options = {"inner": Unchanged, "wavelet": wavelet, "levels": 3, "taps": 8}
    mixer = layers.create_mixer("wavelet_space", recorded.FEATURES, **options, rngs=nnx.Rngs(0))
    mask = np.arange(MOST) < np.array(LENGTHS)[:, None]
    assert relative(program(mixer)(np.where(mask[..., None], X, np.nan), mask), X) < 1e-5
    if wavelet == "orthogonal":
        taps = np.asarray(rotated(mixer.angles[...]))
        for shift in range(0, 8, 2):
            assert np.abs((taps[shift:] * taps[: 8 - shift]).sum(0) - (shift == 0)).max() < 1e-5


def test_gradients_of_the_transform_and_its_inverse() -> None:
    """For the sequence and for the filter: that of small steps, in float64."""
    x, rng = ROWS[2][None], np.random.default_rng(0)
    low = daubechies(4)[:, None].repeat(recorded.FEATURES, 1).astype(np.float32)
    count = np.array([x.shape[1]])
    shapes = [band.shape for band, _ in analyzed(x, count, jnp.asarray(low), LEVELS)]
    cotangents = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]

    def loss(x: Any, low: Any) -> Any:
        bands = analyzed(x, count, low, LEVELS)
        y = synthesized([(band * c, n) for (band, n), c in zip(bands, cotangents, strict=True)], low, [9, 6])
        return jnp.sum(jnp.sin(y))

    with jax.enable_x64(True):
        x64, low64 = jnp.asarray(x, jnp.float64), jnp.asarray(low, jnp.float64)
        way, other = (rng.standard_normal(a.shape) for a in (x, low))
        run = jax.jit(loss)
        slope = (run(x64 + 1e-5 * way, low64 + 1e-5 * other) - run(x64 - 1e-5 * way, low64 - 1e-5 * other)) / 2e-5
    of_x, of_low = (np.asarray(a) for a in jax.jit(jax.grad(loss, (0, 1)))(x, low))
    assert (of_x * way).sum() + (of_low * other).sum() == pytest.approx(float(slope), rel=1e-4)


def test_lifting_is_its_equation() -> None:
    """And undone, in rows of any length."""
    bands = lifted(jnp.asarray(X), jnp.asarray(LENGTHS), 1)
    x = ROWS[0].astype(np.float64)
    even, odd = x[::2], x[1::2]
    fine = odd - (even[:-1] + even[1:]) / 2
    coarse = even + (np.concatenate([fine[:1], fine]) + np.concatenate([fine, fine[-1:]])) / 4
    assert relative(bands[1][0][0, :18], fine) < 1e-6
    assert relative(bands[0][0][0], coarse) < 1e-6
    assert relative(lowered(bands, [MOST])[0], x) < 1e-6


def test_wrong_filters_are_named() -> None:
    with pytest.raises(ValueError, match="an even number of taps, from 2 to 40; got 5"):
        layers.create_mixer("wavelet_space", 8, taps=5, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="wavelet is one of fixed, adaptive, orthogonal, lift"):
        layers.create_mixer("wavelet_space", 8, wavelet="db2", rngs=nnx.Rngs(0))
