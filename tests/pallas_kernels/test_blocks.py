"""Lists of blocks cover exactly what is visible, and call full only what is visible as a whole."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import masks
from pallas_kernels.attention import blocks


def tiles(seen: np.ndarray, block_q: int, block_k: int) -> tuple[np.ndarray, np.ndarray]:
    """any and all of the blocks of a (q, k) matrix, one at a time; queries behind the end do not count, keys there are
    not attended.
    """
    count = [-(-n // b) for n, b in zip(seen.shape, (block_q, block_k))]
    some, every = np.zeros(count, bool), np.zeros(count, bool)
    for i, j in np.ndindex(*count):
        tile = seen[i * block_q : (i + 1) * block_q, j * block_k : (j + 1) * block_k]
        some[i, j], every[i, j] = tile.any(), tile.all() and tile.shape[1] == block_k
    return some, every


def check_lists(got: blocks.Lists, some: np.ndarray, every: np.ndarray) -> None:
    ids, full, count = (np.asarray(x) for x in got)
    for row in np.ndindex(count.shape):
        n = count[row]
        np.testing.assert_array_equal(ids[row][:n], np.flatnonzero(some[row]))
        np.testing.assert_array_equal(full[row][:n], every[row][ids[row][:n]])
        assert not full[row][n:].any()
        assert (ids[row][n:] == (ids[row][n - 1] if n else 0)).all()


PATTERNS = {
    "band": masks.window(5, 3),
    "causal": masks.causal(),
    "segments": masks.segments(12),
    "dilated": masks.dilated(24, 3, 1),
    "grid_windows": masks.grid_windows(8, 4),
    "grid_strides": masks.grid_strides(8, 8, 2),
    "causal_segments": masks.all_of(masks.window(None, 0), masks.segments(16)),
    "global_and_random": masks.global_and_random(64, 4, first=2, random=2),
    "either": masks.any_of(masks.segments(16), masks.window(2, 1)),
    "nothing": masks.all_of(masks.window(None, -40), masks.segments(16)),
}


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize(("q_length", "k_length", "block_q", "block_k"), [(64, 64, 8, 16), (61, 50, 16, 8)])
def test_static_patterns(name: str, q_length: int, k_length: int, block_q: int, block_k: int) -> None:
    seen = PATTERNS[name](np.arange(q_length)[:, None], np.arange(k_length)[None])
    some, every = tiles(seen, block_q, block_k)
    cover = blocks.cover(PATTERNS[name], q_length, k_length, block_q, block_k)
    check_lists(blocks.lists(cover), some, every)
    check_lists(blocks.lists(blocks.transposed(cover)), some.T, every.T)
    for got, want in zip(blocks.seen(None, None, PATTERNS[name], q_length, k_length), (seen.any(1), seen.any(0))):
        np.testing.assert_array_equal(got, want)
    on_device = blocks.Cover(jnp.asarray(cover.some), jnp.asarray(cover.every))
    check_lists(blocks.lists(on_device), some, every)


@pytest.mark.parametrize("left", [None, 0, 5, 40])
@pytest.mark.parametrize("right", [None, 0, 7])
def test_band_from_the_ends_of_blocks(left: int | None, right: int | None) -> None:
    for sizes in ((61, 50, 16, 8), (24, 64, 8, 16), (7, 90, 16, 16)):
        for got, want in zip(blocks.band_cover(left, right, *sizes), blocks.cover(masks.window(left, right), *sizes)):
            np.testing.assert_array_equal(got, want)
        seen = masks.window(left, right)(np.arange(sizes[0])[:, None], np.arange(sizes[1])[None])
        for got, want in zip(blocks.band_seen(left, right, *sizes[:2]), (seen.any(1), seen.any(0))):
            np.testing.assert_array_equal(got, want)


def test_positions_and_masks_on_the_device() -> None:
    rng = np.random.default_rng(0)
    q = np.sort(rng.integers(0, 150, (2, 32)), axis=1)
    k = np.sort(rng.integers(-20, 150, (2, 48)), axis=1)
    k[k < 0] = -1
    mask = rng.random((2, 48)) < 0.5
    mask[:, :24] = True
    cover = blocks.both(
        blocks.position_cover(jnp.asarray(q), jnp.asarray(k), 100, 0, 8, 8),
        blocks.mask_cover(jnp.asarray(np.broadcast_to(mask[:, None], (2, 32, 48))), 8, 8),
    )
    for row in range(2):
        ahead = k[row] - q[row][:, None]
        some, every = tiles((ahead <= 0) & (ahead >= -100) & (k[row] >= 0) & mask[row], 8, 8)
        assert not (some & ~np.asarray(cover.some[row])).any(), "nothing visible is left out"
        assert (~np.asarray(cover.some[row])).any(), "something is left out"
        np.testing.assert_array_equal(np.asarray(cover.every[row]), every)
        assert every.any()


def test_routed_regions_are_whole_blocks() -> None:
    routes = jnp.asarray([[[2, 0], [1, 3], [3, 0], [0, 1]]])
    cover = blocks.routed_cover(routes, 2, 3)
    some = np.zeros((1, 8, 12), bool)
    for region, seen in enumerate(np.asarray(routes[0])):
        for other in seen:
            some[0, 2 * region : 2 * region + 2, 3 * other : 3 * other + 3] = True
    got = blocks.lists(cover, most=6)
    assert got.ids.shape == (1, 8, 6)
    check_lists(got, some, some)
    check_lists(blocks.lists(blocks.transposed(cover)), some.swapaxes(1, 2), some.swapaxes(1, 2))


def test_patterns_of_given_positions() -> None:
    rng = np.random.default_rng(0)
    q, k = rng.integers(0, 90, (2, 32)), rng.integers(0, 90, (1, 48))
    for pattern in (masks.dilated(24, 2), lambda q, k: k % 2 == 0):
        cover = blocks.pattern_cover(pattern, jnp.asarray(q), jnp.asarray(k), 8, 16)
        for row in range(2):
            for got, want in zip(cover, tiles(np.broadcast_to(pattern(q[row][:, None], k), (32, 48)), 8, 16)):
                np.testing.assert_array_equal(got[row], want)


def test_global_and_random_blocks() -> None:
    seen = masks.global_and_random(48, 4, first=2, window=3, random=2, seed=1)(np.arange(48)[:, None], np.arange(48))
    whole = seen[::4, ::4]
    np.testing.assert_array_equal(np.repeat(np.repeat(whole, 4, 0), 4, 1), seen)
    assert whole[:2].all()
    assert whole[:, :2].all()
    near = np.abs(np.subtract.outer(np.arange(12), np.arange(12))) <= 1
    assert whole[near].all()
    others = (whole & ~near)[2:, 2:].sum(1)
    assert others.max() == 2
    assert others.sum() > 10


def test_masks_are_data() -> None:
    q, k = np.arange(40)[:, None], np.arange(40)
    near, parts = masks.window(3, 2), masks.segments(8)
    assert masks.causal() == masks.window(None, 0)
    assert (
        hash(masks.global_and_random(64, 4))
        == hash(masks.global_and_random(64, 4))
        != hash(masks.global_and_random(64, 4, seed=1))
    )
    assert near & parts == masks.all_of(near, parts) != near | parts
    np.testing.assert_array_equal(
        (near & ~parts | masks.Global(2))(q, k), near(q, k) & ~parts(q, k) | (q < 2) | (k < 2)
    )
    # A window among the parts is the op's window: what is known of bands serves it.
    assert masks.without_windows(near & parts & masks.window(1, None)) == ((1, 2), parts)
    assert masks.without_windows(near | parts) == ((None, None), near | parts)
    assert masks.without_windows(masks.causal()) == ((None, 0), None)
