"""Block-sparse flash attention on Hopper: the blocks that a tile reads, and the computation of a tile of logits.

A tile has 64 rows for each consumer warpgroup of a thread block: queries in the forward pass and for their gradient,
keys for the gradients of keys and values (with the logits transposed). It iterates over blocks of the other side: first
those without masked pairs, then those that a mask cuts. For masks that depend only on the distance of positions the
blocks are found by arithmetic; otherwise they are given as lists, which may be computed on the device.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels import hopper
from pallas_kernels.attention.call import Reach
from pallas_kernels.attention.masks import Mask, Score
from pallas_kernels.attention.scores import with_slope

ROWS = 64  # rows of one warpgroup: those of one wgmma
LOG2E = math.log2(math.e)
LOWEST = -1e30  # initial running maxima: finite, so that a row that attends to nothing gives no NaN
HIGHEST = 1e30  # the log-sum-exp of rows whose weights must become zero
COPYING, MULTIPLYING = (
    24,
    240,
)  # registers per thread of the producer warpgroup and of the two consumers: at most 512 together
ALONG_KEYS = ("key_bias", "k_positions")


@dataclasses.dataclass(frozen=True)
class Spec:
    """The static settings of the kernels.

    Attributes:
      batch, heads, kv_heads: sizes of the arrays.
      q_length, k_length: lengths of the arrays; multiples of 8, as TMA requires.
      keys: number of keys without padding.
      reach: (left, right): keys from query - left to query + right; None is unbounded; causal is a right of 0.
      scale: factor of the logits.
      sigmoid: whether the weights are sigmoid's instead of softmax's.
      consumers: number of computing warpgroups of a thread block.
      block: keys in a block of the forward pass and of the gradient of queries.
      back_block: queries in a block of the gradients of keys and values.
      pattern: function of query and key position, True = attend; None allows all. Its blocks are given as lists.
      score: function of the scaled logits, query head and both positions; None for no change.
      every_block: visit all blocks, because the gradient of the logits is needed for each.
    """

    batch: int
    heads: int
    kv_heads: int
    q_length: int
    k_length: int
    keys: int
    reach: Reach
    scale: float
    sigmoid: bool
    consumers: int
    block: int
    back_block: int
    every_block: bool
    pattern: Mask | None = None
    score: Score | None = None

    @property
    def tile(self) -> int:
        """Rows of a thread block."""
        return ROWS * self.consumers

    @property
    def group(self) -> int:
        """Number of query heads per key head."""
        return self.heads // self.kv_heads

    @property
    def q_tiles(self) -> int:
        return -(-self.q_length // self.tile)

    @property
    def k_tiles(self) -> int:
        return -(-self.k_length // self.tile)

    @property
    def q_padded(self) -> int:
        """Number of queries, padded to whole tiles."""
        return self.q_tiles * self.tile

    @property
    def k_padded(self) -> int:
        """Number of keys, padded to whole tiles and whole blocks."""
        step = max(self.tile, self.block)
        return -(-self.k_length // step) * step


@dataclasses.dataclass(frozen=True)
class Visit:
    """The blocks that one tile reads, in order: first ``whole`` ones without masked pairs, then, up to ``total``, those
    that a mask cuts; ``block(j)`` is the index of the j-th.
    """

    whole: jax.Array
    total: jax.Array
    block: Callable[[jax.Array], jax.Array]


def visit(
    spec: Spec, lists: tuple[Any, Any] | None, batch: Any, head: Any, tile: Any, *, transposed: bool = False
) -> Visit:
    """The blocks of a tile of queries, or, if ``transposed``, of a tile of keys.

    Args:
      spec: the kernels' constants.
      lists: references to counts (batch or 1, heads or 1, tiles, 2) and blocks (batch or 1, heads or 1, tiles, most),
        or None.
      batch, head, tile: indices of the tile.
      transposed: whether the tile holds keys and the blocks queries.
    """
    if lists is not None:
        counts, blocks = lists
        row = (batch if counts.shape[0] > 1 else 0, head if counts.shape[1] > 1 else 0, tile)
        return Visit(counts[(*row, 0)], counts[(*row, 1)], lambda j: blocks[(*row, j)])
    left, right = spec.reach
    before, after = (right, left) if transposed else (left, right)
    own, length, size = (
        (spec.keys, spec.q_length, spec.back_block) if transposed else (spec.q_length, spec.keys, spec.block)
    )
    start = tile * spec.tile
    return _span(start, jnp.minimum(start + spec.tile, own) - 1, before, after, length, size, spec.every_block)


def _span(
    start: Any, end: Any, before: int | None, after: int | None, length: int, size: int, every_block: bool
) -> Visit:
    """The blocks of ``size`` out of ``length`` within -before to after of the rows from ``start`` to ``end``."""
    count = -(-length // size)

    def clip(x: Any, low: Any, high: Any) -> Any:
        return jnp.minimum(jnp.maximum(x, low), high)

    def floor(x: Any) -> Any:
        return lax.div(jnp.maximum(x, 0), jnp.int32(size))

    first = jnp.int32(0)
    if before is not None and not every_block:
        first = jnp.where(start - before < length, floor(start - before), count)
    last = jnp.int32(count) if after is None or every_block else clip(floor(end + after) + 1, first, count)
    whole_first = first if before is None else clip(floor(end - before + size - 1), first, last)
    whole_last = clip(
        jnp.int32(length // size) if after is None else jnp.minimum(floor(start + after + 1), length // size),
        whole_first,
        last,
    )
    whole = whole_last - whole_first

    def block(j: Any) -> Any:
        cut = j - whole
        outside = jnp.where(cut < whole_first - first, first + cut, whole_last + cut - (whole_first - first))
        return jnp.where(j < whole, whole_first + j, outside)

    return Visit(whole, last - first, block)


def layer(x: Any, batch: Any, head: Any) -> tuple[Any, Any]:
    """Indices of a batch element and head in ``x``, whose first two axes may have size 1."""
    return (batch if x.shape[0] > 1 else 0, head if x.shape[1] > 1 else 0)


def indices(shape: tuple[int, int], start: Any, axis: int) -> jax.Array:
    """int32 of ``shape``: the index of each row (axis 0) or column (axis 1), counted from ``start``."""
    return start + hopper.iota(shape, axis)


def vector(reference: Any, shape: tuple[int, int], axis: int) -> jax.Array:
    """A vector in shared memory, broadcast to a matrix: one number per row (axis 0) or column (axis 1)."""
    return lax.broadcast_in_dim(hopper.load(reference, plgpu.Layout.WGMMA.reduce(1 - axis)), shape, [axis])


def visible(spec: Spec, q_positions: jax.Array, k_positions: jax.Array, given: bool) -> jax.Array:
    """bool: which keys a query may attend to; positions are matrices, ``given`` by the call (negative for no key) or
    indices.
    """
    allowed = k_positions >= 0 if given else k_positions < spec.keys
    left, right = spec.reach
    if right is not None:
        allowed &= k_positions <= q_positions + right
    if left is not None:
        allowed &= k_positions >= q_positions - left
    if spec.pattern is not None:
        allowed &= spec.pattern(q_positions, k_positions)
    return allowed


def logits(
    spec: Spec, products: jax.Array, head: Any, places: Callable[[], tuple[jax.Array, jax.Array]]
) -> tuple[jax.Array, jax.Array | None]:
    """The logits to base 2, before anything is added, from the products of queries and keys; and the derivative of the
    logits to base e in the scaled products, None for 1.

    Args:
      head: index of the query head.
      places: returns the positions of queries and keys as matrices.
    """
    if spec.score is None:
        return products * (spec.scale * LOG2E), None
    x, slope = with_slope(spec.score, products * spec.scale, jnp.full(products.shape, head, jnp.int32), *places())
    return x * LOG2E, slope


def weights(spec: Spec, logits: jax.Array, log_sum: Any) -> jax.Array:
    """The weights for logits to base 2: softmax with ``log_sum`` (base 2), the logarithm of the denominator, or
    sigmoid.
    """
    if spec.sigmoid:
        return 1.0 / (1.0 + jnp.exp2(-logits))
    return jnp.exp2(logits - log_sum)


def joined(spec: Spec, weight: jax.Array, slope: jax.Array | None) -> tuple[jax.Array, jax.Array | None]:
    """Weights and slope for the gradient of the products. It is linear in softmax's weights, so that these are
    multiplied by the slope: one matrix less in registers.
    """
    return (weight, slope) if slope is None or spec.sigmoid else (weight * slope, None)


def gradient_of_logits(spec: Spec, weight: jax.Array, gradient: jax.Array, delta: Any) -> jax.Array:
    """The gradient of the logits to base e, from the weights and their gradient."""
    if spec.sigmoid:
        return weight * (1.0 - weight) * gradient
    return weight * (gradient - delta)


def loop(start: Any, stop: Any, step: Callable[[Any, Any], Any], carry: Any) -> Any:
    """``lax.fori_loop`` with int32 bounds that may be dynamic."""
    return lax.fori_loop(jnp.int32(start), jnp.asarray(stop, jnp.int32), step, carry)


def ring(step: Any, stages: int) -> Any:
    """The index of the buffer, of ``stages``, that a step uses."""
    return lax.rem(step, jnp.int32(stages))


def produce(total: Any, stages: int, copy: Callable[[Any, Any], None], released: Callable[[Any], None]) -> None:
    """The producer's side of a ring of buffers: calls ``copy(step, slot)`` for each step, after ``released(slot)`` if
    the slot was used before.
    """

    def fill(step: Any, _: None) -> None:
        copy(step, ring(step, stages))

    def refill(step: Any, _: None) -> None:
        released(ring(step, stages))
        copy(step, ring(step, stages))

    first = jnp.minimum(total, stages)
    loop(0, first, fill, None)
    loop(first, total, refill, None)
    # Every arrival at a barrier must be observed.
    loop(total - first, total, lambda step, _: released(ring(step, stages)), None)


def produce_keys(
    spec: Spec, blocks: Visit, stages: int, inputs: Any, memory: Any, barriers: Any, batch: Any, head: Any, tile: Any
) -> None:
    """The producer for a tile of queries: copies the keys and values of its blocks, and other arrays along keys, into
    their buffers.
    """
    kv_head = lax.div(head, jnp.int32(spec.group))

    def copy(step: Any, slot: Any) -> None:
        rows, ready = pl.ds(blocks.block(step) * spec.block, spec.block), barriers["k"].at[slot]
        plgpu.copy_gmem_to_smem(inputs["k"].at[batch, rows, kv_head], memory["k"].at[slot], ready)
        for name in ALONG_KEYS:
            if name in inputs:
                plgpu.copy_gmem_to_smem(
                    inputs[name].at[(*layer(inputs[name], batch, head), rows)], memory[name].at[slot], ready
                )
        if "bias" in inputs:
            where = (*layer(inputs["bias"], batch, head), pl.ds(tile * spec.tile, spec.tile), rows)
            plgpu.copy_gmem_to_smem(inputs["bias"].at[where], memory["bias"].at[slot], ready)
        plgpu.copy_gmem_to_smem(inputs["v"].at[batch, rows, kv_head], memory["v"].at[slot], barriers["v"].at[slot])

    def released(slot: Any) -> None:
        plgpu.barrier_wait(barriers["k_free"].at[slot])
        plgpu.barrier_wait(barriers["v_free"].at[slot])

    produce(blocks.total, stages, copy, released)


def columns(width: int) -> int:
    """The number of columns that are swizzled together in shared memory."""
    return 64 if width % 64 == 0 else 32


def shared(shape: tuple[int, ...], dtype: Any) -> Any:
    """Shared memory for matrices of 16-bit numbers that wgmma reads."""
    return hopper.tiled(shape, dtype, columns(shape[-1]))
