"""Lists of the key blocks that each query block visits, for attention kernels that skip all others.

Static patterns (:mod:`pallas_kernels.attention.masks`) are summarized block by block in numpy while tracing
(:func:`cover`, :func:`band_cover`), those that depend on data on the device (:func:`position_cover`,
:func:`segment_cover`, :func:`mask_cover`, :func:`routed_cover`). :func:`lists` converts the summary to the lists that a
kernel iterates over; those for the backward pass, of query blocks for each key block, are made from :func:`transposed`.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.attention.masks import Mask, Pattern, window


class Cover(NamedTuple):
    """bool (..., q_blocks, k_blocks) each: ``some``, whether any query of a block attends to any key of the other, and
    ``every``, whether all attend to all.
    """

    some: Any
    every: Any


class Lists(NamedTuple):
    """The key blocks of each query block.

    Attributes:
      ids: int32 (..., q_blocks, longest), ascending; entries after ``count`` repeat the last one (0 in an empty list),
        so that nothing new is fetched.
      full: bool (..., q_blocks, longest): every query of the block attends to every key, so that no mask is needed.
        False after ``count``.
      count: int32 (..., q_blocks), lengths of the lists.
    """

    ids: Any
    full: Any
    count: Any


# Summaries of static patterns, in numpy


_STRIP = 128  # queries for which a pattern is evaluated at once
_KEPT = 64  # cached summaries of patterns: every layer of a model needs the same


@functools.lru_cache(_KEPT)
def cover(visible: Mask, q_length: int, k_length: int, block_q: int, block_k: int) -> Cover:
    """The summary of any mask function, evaluated for one block of queries at a time: time q_length * k_length, memory
    block_q * k_length; less where the mask knows a faster way.

    Queries after the end are ignored; keys after the end are never attended to.
    """
    known = visible.cover(q_length, k_length, block_q, block_k) if isinstance(visible, Pattern) else None
    if known is not None:
        return Cover(*known)
    k_blocks = -(-k_length // block_k)
    k = np.arange(k_blocks * block_k, dtype=np.int32)[None]
    some, every = [], []
    for start in range(0, q_length, block_q):
        q = np.arange(start, min(start + block_q, q_length), dtype=np.int32)[:, None]
        seen = np.broadcast_to(visible(q, k) & (k < k_length), (len(q), k.shape[1])).reshape(len(q), k_blocks, block_k)
        some.append(seen.any((0, 2)))
        every.append(seen.all((0, 2)))
    return Cover(np.stack(some), np.stack(every))


@functools.lru_cache(_KEPT)
def seen(
    left: int | None, right: int | None, pattern: Mask, q_length: int, k_length: int
) -> tuple[np.ndarray, np.ndarray]:
    """As :func:`band_seen`, for a window combined with a pattern."""
    band = window(left, right)
    k = np.arange(k_length, dtype=np.int32)[None]
    seeing, attended = [], np.zeros(k_length, bool)
    for start in range(0, q_length, _STRIP):
        q = np.arange(start, min(start + _STRIP, q_length), dtype=np.int32)[:, None]
        strip = np.broadcast_to(band(q, k) & pattern(q, k), (len(q), k_length))
        seeing.append(strip.any(1))
        attended |= strip.any(0)
    return np.concatenate(seeing), attended


def band_cover(left: int | None, right: int | None, q_length: int, k_length: int, block_q: int, block_k: int) -> Cover:
    """The result of :func:`cover` for :func:`masks.window`, computed only from the ends of the blocks."""
    q_first, q_last = _ends(q_length, block_q)
    k_first, k_last = _ends(k_length, block_k)
    some = np.ones((len(q_first), len(k_first)), bool)
    whole = k_first + block_k <= k_length
    every = some & whole
    if left is not None:
        some &= k_last >= q_first[:, None] - left
        every &= k_first >= q_last[:, None] - left
    if right is not None:
        some &= k_first <= q_last[:, None] + right
        every &= k_last <= q_first[:, None] + right
    return Cover(some, every)


def band_seen(left: int | None, right: int | None, q_length: int, k_length: int) -> tuple[np.ndarray, np.ndarray]:
    """Which queries attend to any key, bool (q_length,), and which keys are attended to by any query, bool
    (k_length,).
    """

    def meets(length: int, others: int, below: int | None, above: int | None) -> np.ndarray:
        at = np.arange(length)
        return ((np.zeros_like(at) if below is None else at - below) < others) & (
            (np.zeros_like(at) if above is None else at + above) >= 0
        )

    return meets(q_length, k_length, left, right), meets(k_length, q_length, right, left)


def _ends(length: int, block: int) -> tuple[np.ndarray, np.ndarray]:
    first = np.arange(0, length, block)
    return first, np.minimum(first + block, length) - 1


def static_cover(
    left: int | None, right: int | None, pattern: Mask | None, q_length: int, k_length: int, block_q: int, block_k: int
) -> Cover:
    """The summary of a window combined with a pattern, with indices as positions."""
    band = band_cover(left, right, q_length, k_length, block_q, block_k)
    return band if pattern is None else both(band, cover(pattern, q_length, k_length, block_q, block_k))


# Summaries of data on the device


def pattern_cover(pattern: Mask, q_positions: jax.Array, k_positions: jax.Array, block_q: int, block_k: int) -> Cover:
    """The summary of a pattern at positions (batch or 1, length) of whole blocks. The compiler fuses the matrix with
    its reduction.
    """
    shape = np.broadcast_shapes(q_positions[:, :, None].shape, k_positions[:, None].shape)
    return mask_cover(jnp.broadcast_to(pattern(q_positions[:, :, None], k_positions[:, None]), shape), block_q, block_k)


def position_cover(
    q_positions: jax.Array, k_positions: jax.Array, left: int | None, right: int | None, block_q: int, block_k: int
) -> Cover:
    """The summary of a window at positions (batch, length) of whole blocks. It is computed from the ends of each block,
    so that ``some`` may be True where gaps leave nothing to attend to.

    A negative key position is an empty slot.
    """
    q, k = (x.reshape(x.shape[0], -1, block) for x, block in ((q_positions, block_q), (k_positions, block_k)))
    q_first, q_last = q.min(2)[:, :, None], q.max(2)[:, :, None]
    filled, far = k >= 0, jnp.iinfo(k.dtype).max // 2
    k_first, k_last = jnp.where(filled, k, far).min(2)[:, None], jnp.where(filled, k, -far).max(2)[:, None]
    some = jnp.broadcast_to(filled.any(2)[:, None], (max(q.shape[0], k.shape[0]), q.shape[1], k.shape[1]))
    every = jnp.broadcast_to(filled.all(2)[:, None], some.shape)
    if left is not None:
        some &= k_last >= q_first - left
        every &= k_first >= q_last - left
    if right is not None:
        some &= k_first <= q_last + right
        every &= k_last <= q_first + right
    return Cover(some, every)


def segment_cover(q_ids: jax.Array, k_ids: jax.Array, block_q: int, block_k: int) -> Cover:
    """The summary of equal ids (batch or 1, length) of whole blocks, computed from the smallest and largest id of each;
    exact if ids ascend.
    """
    q, k = q_ids.reshape(q_ids.shape[0], -1, 1, block_q), k_ids.reshape(k_ids.shape[0], 1, -1, block_k)
    q_least, q_most, k_least, k_most = q.min(3), q.max(3), k.min(3), k.max(3)
    return Cover(
        (q_least <= k_most) & (k_least <= q_most), (q_least == q_most) & (k_least == k_most) & (q_least == k_least)
    )


def mask_cover(mask: jax.Array, block_q: int, block_k: int) -> Cover:
    """The summary of a mask (..., q_length, k_length) of whole blocks."""
    tiles = mask.reshape(*mask.shape[:-2], mask.shape[-2] // block_q, block_q, mask.shape[-1] // block_k, block_k)
    return Cover(tiles.any((-3, -1)), tiles.all((-3, -1)))


def key_cover(mask: jax.Array, block_k: int) -> Cover:
    """The summary of a mask of keys (..., k_length) of whole blocks, the same for all query blocks: (..., 1,
    k_blocks).
    """
    tiles = mask.reshape(*mask.shape[:-1], 1, -1, block_k)
    return Cover(tiles.any(-1), tiles.all(-1))


def routed_cover(routes: jax.Array, q_blocks: int, k_blocks: int) -> Cover:
    """The summary of routes for tokens stored region by region, where regions are whole blocks (BiFormer,
    arXiv:2303.08810).

    Args:
      routes: int (..., regions, topk), the regions that each region attends to.
      q_blocks, k_blocks: query and key blocks of a region.
    """
    seen = (routes[..., None] == jnp.arange(routes.shape[-2])).any(-2)
    seen = jnp.repeat(jnp.repeat(seen, q_blocks, -2), k_blocks, -1)
    return Cover(seen, seen)


# From summaries to lists


def both(a: Cover, b: Cover) -> Cover:
    """The summary of the conjunction of two patterns; ``some`` may be True where both allow something, but nothing in
    common.
    """
    return Cover(a.some & b.some, a.every & b.every)


def transposed(a: Cover) -> Cover:
    """The summary with query and key blocks exchanged."""
    return Cover(a.some.swapaxes(-1, -2), a.every.swapaxes(-1, -2))


def lists(a: Cover, most: int | None = None) -> Lists:
    """The lists of a summary: in numpy as long as the longest one requires; on the device ``most`` entries, by default
    as many as there are blocks.
    """
    static = isinstance(a.some, np.ndarray)
    xp: Any = np if static else jnp
    count = a.some.sum(-1).astype(np.int32)
    longest = max(int(count.max()), 1) if static else most or a.some.shape[-1]
    # Visible blocks first, each kind in ascending order.
    order = xp.argsort(~a.some, axis=-1, stable=True)
    place = xp.minimum(xp.arange(longest), xp.maximum(count - 1, 0)[..., None])
    ids = xp.take_along_axis(order, place, axis=-1)
    full = xp.take_along_axis(a.some & a.every, ids, axis=-1) & (xp.arange(longest) < count[..., None])
    return Lists(xp.where(count[..., None] > 0, ids, 0).astype(np.int32), full, count)
