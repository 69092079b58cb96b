"""Which randomized positions are sampled, and how a mixer uses them."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import layers
from layers import RandomizedPlaces, Tokens
from layers.initializers import truncated_normal
from layers.randomized_positions import ordered
from layers.state import assign, flatten
from tests.compilation import program
from tests.layers.mixer_cases import CASES, FEATURES, relative
from tests.tiers import tiered

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


def test_positions_that_depend_on_no_later_token() -> None:
    """Those of evaluation are the first of one sample, whole and in pieces; training draws for the row."""
    places = RandomizedPlaces(MOST, longest=20, rngs=nnx.Rngs(0))
    first, second = np.asarray(places(Tokens(), 9))[0], np.asarray(places(Tokens(), 9))[0]
    assert not np.array_equal(first, second)
    assert all((np.diff(drawn) > 0).all() and drawn.min() >= 0 and drawn.max() < MOST for drawn in (first, second))
    greatest = max(int(places(Tokens(), 9)[0, -1]) for _ in range(30))
    assert greatest >= 34  # of 9 of 40 positions; the first 9 of 20 would reach so far with a probability below 1e-8
    places.eval()
    whole = np.asarray(places(Tokens(), 20))[0]
    assert (np.diff(whole) > 0).all()
    assert np.array_equal(places(Tokens(), 9)[0], whole[:9])
    assert np.array_equal(places.at(np.array([[3, 7]])), whole[[[3, 7]]])
    packed = places(Tokens(segment_ids=np.array([[4, 4, 4, 4, 7, 7, 7, 7, 7]])), 9)
    assert np.array_equal(packed[0], [*whole[:4], *whole[:5]])
    with pytest.raises(ValueError, match="drawn for longest=20 tokens, got 21: give a larger longest"):
        places(Tokens(), 21)
    with pytest.raises(ValueError, match="longest is from 1 to max_length=40"):
        RandomizedPlaces(MOST, longest=41, rngs=nnx.Rngs(0))


TAKING = [
    case.name
    for case in CASES
    if case.causal and case.is_first and case.declared.takes_positions and "positions" in case.declared.honors
]
METHODS = {
    "rotary": {"rotary": 100.0},
    "alibi": {"relative": "alibi"},
    "buckets": {"relative": {"name": "buckets", "buckets": 8, "max_distance": 30}},
    "fire": {"relative": {"name": "fire", "threshold": 20.0}},
    "kerple": {"relative": "kerple"},
    "keys": {"relative": {"name": "keys", "reach": 9}},
    "learned": {"relative": {"name": "learned", "reach": 9}},
    "universal": {"relative": {"name": "universal", "reach": 9}},
}


@pytest.mark.parametrize("method", tiered(METHODS, lambda method: method == "alibi"))
def test_in_pieces_as_whole(method: str) -> None:
    """Every way to tell positions, with two documents in a row and padding after it; and positions do count."""
    inner = {"name": "attention", "num_heads": 2, "kernel_init": truncated_normal(0.5), **METHODS[method]}
    mixer = layers.create_mixer(
        "randomized_positions", 8, inner=inner, max_length=MOST, longest=12, causal=True, rngs=nnx.Rngs(0)
    )
    randomize(mixer)
    mixer.eval()
    x = np.random.default_rng(0).standard_normal((2, 12, 8)).astype(np.float32)
    mask = np.arange(12) < np.array([12, 9])[:, None]
    ids = np.broadcast_to(np.arange(12) >= 7, (2, 12)).astype(np.int32)
    graph, state = nnx.split(mixer)
    whole = jax.jit(lambda x, mask, ids: nnx.merge(graph, state)(x, Tokens(mask, segment_ids=ids)))(x, mask, ids)
    extend = jax.jit(lambda x, s, mask, ids: nnx.merge(graph, state).extend(x, s, Tokens(mask, segment_ids=ids)))
    found, kept = [], mixer.init_state(2, 12)
    for part in (slice(0, 5), slice(5, 6), slice(6, 12)):
        y, kept = extend(x[:, part], kept, mask[:, part], ids[:, part])
        found.append(y)
    assert relative(np.concatenate(found, 1)[mask], np.asarray(whole)[mask]) < 1e-5
    plain = jax.jit(lambda x, mask, ids: nnx.merge(graph, state).inner(x, Tokens(mask, segment_ids=ids)))(x, mask, ids)
    assert relative(np.asarray(plain)[mask], np.asarray(whole)[mask]) > 1e-3


@pytest.mark.full
@pytest.mark.parametrize("name", TAKING)
def test_every_mixer_that_takes_positions(name: str) -> None:
    """Whole and in pieces are equal for positions that are given."""
    case = next(case for case in CASES if case.name == name and case.causal and case.is_first)
    mixer = case.make()
    x = np.random.default_rng(0).standard_normal((2, 10, FEATURES)).astype(np.float32)
    positions = np.sort(np.random.default_rng(1).permutation(60)[:10])[None].astype(np.int32)
    graph, state = nnx.split(mixer)
    whole = jax.jit(lambda x: nnx.merge(graph, state)(x, Tokens(positions=jnp.asarray(positions))))(x)
    kept, found = mixer.init_state(2, 10), []
    extend = jax.jit(lambda x, s, p: nnx.merge(graph, state).extend(x, s, Tokens(positions=p)))
    for part in (slice(0, 4), slice(4, 5), slice(5, 10)):
        y, kept = extend(x[:, part], kept, positions[:, part])
        found.append(y)
    assert relative(np.concatenate(found, 1), whole) < 1e-5


def randomize(mixer: nnx.Module) -> None:
    """Parameters that begin as zeros get values."""
    rng = np.random.default_rng(2)
    assign(mixer, {n: v + 0.3 * rng.standard_normal(v.shape).astype(np.float32) for n, v in flatten(mixer).items()})


def test_what_it_refuses() -> None:
    make = functools.partial(layers.create_mixer, "randomized_positions", 8, num_heads=2, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="uses positions, and FourierMixing does not"):
        make(inner="fourier_mixing")
    with pytest.raises(ValueError, match="MultiHeadAttention has a window, which counts positions"):
        make(inner={"name": "attention", "window": 4}, causal=True)
    with pytest.raises(ValueError, match="DilatedAttention counts the positions of what it reads"):
        make(inner="dilated_attention", causal=True)
    mixer = make(longest=5, causal=True)
    with pytest.raises(ValueError, match="drawn for longest=5 tokens, got 6"):
        mixer.init_state(1, 6)
