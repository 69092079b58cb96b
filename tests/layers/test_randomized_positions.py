"""What is drawn for randomized positions, and what a mixer makes of it."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest
from flax import nnx

import layers
from layers import RandomizedPlaces, Tokens
from layers.randomized_positions import ordered
from tests.compilation import program
from tests.layers.mixer_cases import relative

MOST = 40


def test_positions_are_a_sorted_sample() -> None:
    """Of each row, of the number of its tokens, and of each document; without padding."""
    places = RandomizedPlaces(MOST, seed=1, rngs=nnx.Rngs(0))
    draw = functools.cache(lambda n: np.asarray(places(Tokens(), n))[0])
    mask = np.arange(9) < np.array([9, 5])[:, None]
    padded = np.asarray(places(Tokens(mask), 9))
    assert np.array_equal(padded[0], draw(9))
    assert np.array_equal(padded[1, :5], draw(5))
    packed = np.asarray(places(Tokens(segment_ids=np.array([[4, 4, 4, 4, 7, 7, 7, 7, 7]])), 9))
    assert np.array_equal(packed[0], [*draw(4), *draw(5)])
    for count in (1, 5, 9, MOST):
        assert (np.diff(draw(count)) > 0).all()
        assert draw(count).min() >= 0
        assert draw(count).max() < MOST
    assert not np.array_equal(draw(9), np.arange(9))
    with pytest.raises(ValueError, match="41 tokens can't have different positions out of max_length=40"):
        places(Tokens(), MOST + 1)


def test_all_samples_are_equally_probable() -> None:
    """Of 2 of 4 positions, by the share of each of the 6 in many draws."""
    keys = jax.random.split(jax.random.key(0), 600)
    drawn = jax.jit(jax.vmap(lambda key: ordered(jax.random.permutation(key, 4), Tokens(), 2)[0]))(keys)
    _, counts = np.unique(np.asarray(drawn), axis=0, return_counts=True)
    assert len(counts) == 6
    assert abs(counts / 600 - 1 / 6).max() < 0.06  # four standard deviations


def test_the_inner_mixer_gets_them() -> None:
    x = np.random.default_rng(0).standard_normal((2, 9, 8)).astype(np.float32)
    inner = {"name": "attention", "num_heads": 2, "relative": "alibi"}
    mixer = layers.create_mixer("randomized_positions", 8, inner=inner, max_length=MOST, rngs=nnx.Rngs(0))
    first, second = mixer(x), mixer(x)
    assert relative(first, second) > 1e-4  # another draw
    mixer.eval()
    positions = mixer.places(Tokens(), 9)
    known = nnx.split(mixer.inner)
    want = jax.jit(lambda x: nnx.merge(*known)(x, Tokens(positions=positions)))(x)
    assert relative(program(mixer)(x), want) < 1e-6
    with pytest.raises(ValueError, match="uses positions, and FourierMixing does not"):
        layers.create_mixer("randomized_positions", 8, inner="fourier_mixing", rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="RandomizedPositions is bidirectional only"):
        layers.create_mixer("randomized_positions", 8, inner=inner, causal=True, rngs=nnx.Rngs(0))
