"""Bits that decide what is dropped: uniform, and independent of each other along every axis they depend on."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from primitives.dropping import kept, random_bits

DRAWS, ROWS, INNER = 64, 64, 64


@functools.cache
def bits() -> np.ndarray:
    """(streams, draws, rows, inner): two keys that one stream of random numbers was split into."""
    keys = jax.random.split(jax.random.key(0))
    steps = jnp.arange(DRAWS, dtype=jnp.uint32)
    draw = jax.vmap(lambda key: jax.vmap(lambda step: random_bits(key, step, (ROWS, INNER)))(steps))
    return np.asarray(draw(keys))


def signs(x: np.ndarray) -> Iterator[np.ndarray]:
    """Each of the 32 bits as -1 or 1."""
    for i in range(32):
        yield 2.0 * ((x >> i) & 1) - 1


def test_every_bit_is_as_often_1_as_0() -> None:
    for sign in signs(bits()):
        assert abs(sign.mean()) < 5 / np.sqrt(sign.size)
    # Bytes too: chi-squared with 255 degrees of freedom, whose standard deviation is 22.6.
    for byte in bits().view(np.uint8).reshape(-1, 4).T:
        counts = np.bincount(byte, minlength=256)
        assert np.sum((counts - counts.mean()) ** 2) / counts.mean() < 255 + 5 * 22.6


@pytest.mark.parametrize(("axis", "distance"), [(0, 1), *((axis, n) for axis in (1, 2, 3) for n in (1, 2, 16, 32))])
def test_bits_do_not_depend_on_their_neighbors(axis: int, distance: int) -> None:
    x = bits()
    ahead, behind = np.split(x, [distance], axis)[1], np.split(x, [x.shape[axis] - distance], axis)[0]
    for first, second in zip(signs(ahead), signs(behind)):
        assert abs(np.mean(first * second)) < 5 / np.sqrt(first.size)


@pytest.mark.parametrize("flipped", ["key", "step", "row", "entry"])
def test_a_changed_bit_of_the_input_changes_half_of_the_output(flipped: str) -> None:
    data = jax.random.key_data(jax.random.key(1))

    def draw(key: jax.Array, step: jax.Array) -> jax.Array:
        return random_bits(jax.random.wrap_key_data(key), step, (256, 256))

    before = np.asarray(draw(data, jnp.uint32(5)))
    for i in range(8):
        match flipped:
            case "key":
                after = np.asarray(draw(data ^ jnp.asarray([0, 1 << i], jnp.uint32), jnp.uint32(5)))
            case "step":
                after = np.asarray(draw(data, jnp.uint32(5 ^ 1 << i)))
            case _:
                place = np.arange(256) ^ (1 << i)
                after = before[place] if flipped == "row" else before[:, place]
        for sign in signs(before ^ after):
            # Rows and entries are counted twice, once from each of both.
            assert abs(sign.mean()) < 5 * np.sqrt(2) / 256


def test_rows_do_not_repeat_each_other() -> None:
    """Not in another order either: with one word of state, two rows would hold the same numbers."""
    rows = bits().reshape(-1, INNER)
    assert len(np.unique(rows)) > rows.size * (1 - rows.size / 2**32)
    first = {tuple(sorted(row)) for row in rows}
    assert len(first) == len(rows)


def test_entries_are_kept_with_their_probability() -> None:
    key, step = jax.random.key(3), jnp.uint32(2)
    for probability in (0.0, 0.1, 0.9, 1.0):
        share = np.mean(kept(key, step, probability, (300, 300)))
        assert abs(share - probability) <= 4 * np.sqrt(probability * (1 - probability)) / 300
    other = jax.random.key(3, impl="rbg")  # a key of four words
    assert not np.array_equal(kept(other, step, 0.5, (300,)), kept(key, step, 0.5, (300,)))
    assert kept(key, step, 0.5, ()).shape == ()
