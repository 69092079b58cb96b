"""Block-sparse flash attention on Hopper: which blocks a tile reads, and how a tile of logits is computed.

A tile is 64 rows for each consumer warpgroup of a thread block: queries in the forward pass and for their gradient,
keys for theirs (the logits are then transposed). It reads blocks of the other side in turn: first those that it sees
whole, then those that a mask cuts. For masks that depend on the distance of positions alone the blocks are found by
arithmetic; otherwise they come as lists, which may be computed on the device.
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

ROWS = 64  # of one warpgroup: those of one wgmma
LOG2E = math.log2(math.e)
LOWEST = -1e30  # where running maxima start: finite, so that a row that sees nothing gives no NaN
HIGHEST = 1e30  # the log-sum-exp of rows whose weights must come out as zeros
COPYING, MULTIPLYING = (
    24,
    240,
)  # registers of a thread of the warpgroup that copies, and of the two that multiply: 512 together at most
ALONG_KEYS = ("key_bias", "k_positions")


@dataclasses.dataclass(frozen=True)
class Spec:
    """What is fixed when the kernels are compiled.

    Attributes:
      batch, heads, kv_heads: of the arrays.
      q_length, k_length: of the arrays; multiples of 8, which TMA copies together.
      keys: how many of them are real.
      reach: limits (left, right) of key minus query position, None for none; causality is a right of 0.
      scale: of the logits.
      sigmoid: instead of softmax.
      consumers: warpgroups of a thread block that compute.
      block: keys in a block of the forward pass and of the gradient of queries.
      back_block: queries in a block of the gradients of keys and values.
      pattern: of query and key position, True = attend; None is all. Its blocks come as lists.
      score: of scaled logits, query head and both positions; None leaves them.
      every_block: no block may be passed over, because each one's gradient of the logits is wanted.
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
        """Query heads of one key head."""
        return self.heads // self.kv_heads

    @property
    def q_tiles(self) -> int:
        return -(-self.q_length // self.tile)

    @property
    def k_tiles(self) -> int:
        return -(-self.k_length // self.tile)

    @property
    def q_padded(self) -> int:
        """Queries of whole tiles."""
        return self.q_tiles * self.tile

    @property
    def k_padded(self) -> int:
        """Keys of whole tiles and whole blocks."""
        step = max(self.tile, self.block)
        return -(-self.k_length // step) * step


@dataclasses.dataclass(frozen=True)
class Visit:
    """The blocks that one tile reads, in order: ``whole`` ones, then up to ``total`` those that a mask cuts."""

    whole: jax.Array
    total: jax.Array
    block: Callable[[jax.Array], jax.Array]


def visit(
    spec: Spec, lists: tuple[Any, Any] | None, batch: Any, head: Any, tile: Any, *, transposed: bool = False
) -> Visit:
    """The blocks of a tile of queries, or with ``transposed`` of a tile of keys.

    Args:
      spec: the kernels' constants.
      lists: references to counts (batch or 1, heads or 1, tiles, 2) and blocks (batch or 1, heads or 1, tiles, most),
        or None.
      batch, head, tile: which one.
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
    """Blocks of ``size`` out of ``length`` at a distance of [-before, after] from the rows ``start`` to ``end``."""
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
    """Where a batch element's and head's own part of ``x`` lies, whose two first axes may be shared."""
    return (batch if x.shape[0] > 1 else 0, head if x.shape[1] > 1 else 0)


def indices(shape: tuple[int, int], start: Any, axis: int) -> jax.Array:
    """int32 of ``shape``: the place of each row (axis 0) or column (axis 1), counted on from ``start``."""
    return start + hopper.iota(shape, axis)


def vector(reference: Any, shape: tuple[int, int], axis: int) -> jax.Array:
    """A vector in shared memory spread over a matrix: one number for each row (axis 0) or column (axis 1)."""
    return lax.broadcast_in_dim(hopper.load(reference, plgpu.Layout.WGMMA.reduce(1 - axis)), shape, [axis])


def visible(spec: Spec, q_positions: jax.Array, k_positions: jax.Array, given: bool) -> jax.Array:
    """bool: which keys a query may attend; positions in matrices, ``given`` (negative is no key) or counted."""
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
    """Logits to base 2 of products of queries and keys, before anything is added, and the derivative of those to base e
    in the scaled products; None is 1.

    Args:
      head: of the queries.
      places: gives the positions of queries and keys, matrices.
    """
    if spec.score is None:
        return products * (spec.scale * LOG2E), None
    x, slope = with_slope(spec.score, products * spec.scale, jnp.full(products.shape, head, jnp.int32), *places())
    return x * LOG2E, slope


def weights(spec: Spec, logits: jax.Array, log_sum: Any) -> jax.Array:
    """Weights of logits to base 2: softmax with ``log_sum`` (base 2) as logarithm of the denominator, or sigmoid."""
    if spec.sigmoid:
        return 1.0 / (1.0 + jnp.exp2(-logits))
    return jnp.exp2(logits - log_sum)


def joined(spec: Spec, weight: jax.Array, slope: jax.Array | None) -> tuple[jax.Array, jax.Array | None]:
    """Weights and slope for a gradient of products, which is linear in softmax's weights: their product, and one matrix
    less to keep.
    """
    return (weight, slope) if slope is None or spec.sigmoid else (weight * slope, None)


def gradient_of_logits(spec: Spec, weight: jax.Array, gradient: jax.Array, delta: Any) -> jax.Array:
    """Of the logits to base e, from weights and the gradient of the weights."""
    if spec.sigmoid:
        return weight * (1.0 - weight) * gradient
    return weight * (gradient - delta)


def loop(start: Any, stop: Any, step: Callable[[Any, Any], Any], carry: Any) -> Any:
    """``lax.fori_loop`` between int32 bounds that need not be known."""
    return lax.fori_loop(jnp.int32(start), jnp.asarray(stop, jnp.int32), step, carry)


def ring(step: Any, stages: int) -> Any:
    """Which of ``stages`` buffers a step uses."""
    return lax.rem(step, jnp.int32(stages))


def produce(total: Any, stages: int, copy: Callable[[Any, Any], None], released: Callable[[Any], None]) -> None:
    """The producer's side of a ring of buffers: ``copy(step, slot)`` for each step, after ``released(slot)`` where the
    slot was used before.
    """

    def fill(step: Any, _: None) -> None:
        copy(step, ring(step, stages))

    def refill(step: Any, _: None) -> None:
        released(ring(step, stages))
        copy(step, ring(step, stages))

    first = jnp.minimum(total, stages)
    loop(0, first, fill, None)
    loop(first, total, refill, None)
    # No barrier is left with an unobserved arrival.
    loop(total - first, total, lambda step, _: released(ring(step, stages)), None)


def produce_keys(
    spec: Spec, blocks: Visit, stages: int, inputs: Any, memory: Any, barriers: Any, batch: Any, head: Any, tile: Any
) -> None:
    """The producer of a tile of queries: the keys and values of its blocks, and other arrays along keys, into buffers
    of both."""
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
    """Of a swizzled row in shared memory."""
    return 64 if width % 64 == 0 else 32


def shared(shape: tuple[int, ...], dtype: Any) -> Any:
    """Shared memory for matrices of 16-bit numbers that wgmma reads."""
    return hopper.tiled(shape, dtype, columns(shape[-1]))
