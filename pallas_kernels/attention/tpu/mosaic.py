"""Block-sparse flash attention on TPU (arXiv:2205.14135, arXiv:2307.08691), forward and backward.

A block of queries iterates over a list of key blocks (:mod:`pallas_kernels.attention.blocks`); fully visible blocks are
not masked. The lists are made while tracing for windows and causality, and on the device for masks, positions, segments
and routes. Short rows of the batch (windows of an image) share a block. Routed regions that are nearly whole blocks are
served by lists; the keys of smaller ones are copied, since the matrix unit multiplies 128 by 128 numbers at once, and
copied regions can share a block. The kernels are in :mod:`pallas_kernels.attention.tpu.flash`. Sinks and masks of
queries are left to XLA: they only change the output and its log-sum-exp.

JAX's own splash attention is used where possible (:mod:`pallas_kernels.attention.tpu.splash`). It does not support a
log-sum-exp with a gradient, sigmoid weights, masks of single keys, lists computed on the device, queries that attend to
nothing, padding that may hold NaN, and odd lengths.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import dispatch, mesh
from pallas_kernels.attention import blocks, regions
from pallas_kernels.attention.call import AttentionCall
from pallas_kernels.attention.masks import Mask, Pattern
from pallas_kernels.attention.reference import visible
from pallas_kernels.attention.tpu.flash import Walk, flash
from pallas_kernels.attention.tpu.tiles import Options, Where
from pallas_kernels.mosaic_tpu import LANES
from pallas_kernels.mosaic_tpu import objection as tpu_objection

BLOCKS = (512, 256, 128)
HEAD_DIM_LIMIT = 256  # so that blocks fit VMEM
LIST_LIMIT = 2**16  # entries of lists in scalar memory; beyond it rows of the batch share one list


def objection(call: AttentionCall) -> str | None:
    """Why the kernel does not support the call, or None."""
    q, k, v, bias = call.q, call.k, call.v, call.bias
    if (reason := call.plain()) is not None:
        return reason
    if call.score is not None and mesh.splits_heads():
        return "its score depends on the head, and the mesh splits heads"
    if call.routes is not None and not _lists_serve(call, call.routes):
        return regions.objection(objection, call)
    if bias is not None and (bias.shape[2] < q.shape[1] or bias.shape[3] < k.shape[1]):
        return "it takes only a bias for each query and key"
    if call.bias_rest is not None:
        return "bias_rest is given, which its tiles don't read"
    if max(q.shape[3], v.shape[3]) > HEAD_DIM_LIMIT:
        return f"head_dim {max(q.shape[3], v.shape[3])} is above {HEAD_DIM_LIMIT}"
    if not q.dtype == k.dtype == v.dtype:
        return f"q, k and v have different dtypes: {q.dtype}, {k.dtype}, {v.dtype}"
    return tpu_objection(q)


def attention(call: AttentionCall) -> tuple[Any, ...]:
    """The op."""
    if call.routes is not None:
        return (
            _finish(call, *_routed(call, call.routes))
            if _lists_serve(call, call.routes)
            else regions.gathered(attention, call)
        )
    q, k, v, bias, scale = call.q, call.k, call.v, call.bias, call.scale
    (batch, q_length, _, _), (k_length, kv_heads) = q.shape, k.shape[1:3]
    (left, right), pattern = call.reach, call.pattern
    query_positions, key_positions = call.query_positions if call.ordered else None, call.key_positions
    queries_seeing, keys_seen = (
        (None, None) if call.finite else _seen(call.replace(query_positions=query_positions), kv_heads)
    )
    # 0 * NaN is NaN: keys that no query attends to, and queries that attend to nothing, may hold anything.
    if queries_seeing is not None:
        q = jnp.where(jnp.swapaxes(queries_seeing, 1, 2)[..., None], q, 0)
    if keys_seen is not None:
        k, v = (jnp.where(jnp.swapaxes(keys_seen, 1, 2)[..., None], x, 0) for x in (k, v))
    if q.dtype == jnp.float32:
        # Scaling q first rounds large logits only once, in the product, equally in both passes. In bfloat16 it would
        # round the queries twice instead.
        q, scale = scale * q, 1.0
    where, attending = _where(call.replace(query_positions=query_positions))
    fold = _fold(batch, q_length, k_length) if where.mask is None and (bias is None or bias.shape[0] == 1) else None
    if fold is None:
        wanted = pattern.blocks if isinstance(pattern, Pattern) else None
        block_q, block_k = (
            _block(length, least, size)
            for length, least, size in zip((q_length, k_length), (16, LANES), wanted or (None, None), strict=True)
        )
        size_q, size_k = _round_up(q_length, block_q), _round_up(k_length, block_k)
        where = _pad(where, size_q, size_k)
        indexed = query_positions is None and key_positions is None
        cover, most = _cover(where, left, right, pattern, indexed, q_length, k_length, block_q, block_k)
        q, k, v = (
            jnp.pad(x, ((0, 0), (0, size - x.shape[1]), (0, 0), (0, 0)))
            for x, size in ((q, size_q), (k, size_k), (v, size_k))
        )
    else:
        where = _fold_where(fold, batch, _pad(where, fold.q, fold.k))
        block_q, block_k = fold.together * fold.q, fold.together * fold.k
        cover, most = blocks.Cover(np.ones((1, 1, 1, 1), bool), np.zeros((1, 1, 1, 1), bool)), (1, 1)
        q, k, v = fold.rows(q, fold.q), fold.rows(k, fold.k), fold.rows(v, fold.k)
    forth, back = blocks.lists(cover, most[0]), blocks.lists(blocks.transposed(cover), most[1])
    steps = forth.ids.shape[-1], back.ids.shape[-1]
    folded = None if fold is None else (fold.q, fold.k)
    visits = int(cover.some.sum()) if isinstance(cover.some, np.ndarray) else cover.some.shape[2] * steps[0]
    options = Options(
        left, right, scale, call.normalize, k_length, block_q, block_k, folded, visits, steps, dispatch.interpreted(),
        pattern, call.score,
    )  # fmt: skip
    out, lse = flash(
        options, cover.some.shape[:2], *(jnp.swapaxes(x, 1, 2) for x in (q, k, v)), where, _walk(forth), _walk(back)
    )
    out, lse = (jnp.swapaxes(x, 1, 2) for x in (out, lse))
    if fold is not None:
        out, lse = (x.reshape(-1, fold.q, *x.shape[2:])[:batch] for x in (out, lse))
    out, lse = out[:, :q_length], lse[:, :q_length]
    if attending is not None:
        attending = jnp.swapaxes(attending, 1, 2)
        out, lse = jnp.where(attending[..., None], out, 0), jnp.where(attending, lse, -jnp.inf)
    return _finish(call, out, lse)


def _finish(call: AttentionCall, out: jax.Array, lse: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The results of the op, from those of the kernels (batch, length, heads, ...)."""
    if call.sinks is not None:
        sink = call.sinks.astype(jnp.float32)
        out = (out * jax.nn.sigmoid(lse - sink)[..., None]).astype(out.dtype)
        lse = jnp.logaddexp(lse, sink)
    return out, lse


def _region_sizes(q_length: int, k_length: int, count: int) -> tuple[int | None, int | None]:
    """Tokens of a query region and of a key region, padded to whole blocks; None where padding would add too much."""
    return regions.padded_size(q_length, count, LANES), regions.padded_size(k_length, count, LANES)


def _region_block(size: int) -> int:
    return next(b for b in BLOCKS if size % b == 0)


def _lists_serve(call: AttentionCall, routes: jax.Array) -> bool:
    """Whether routed regions are served by lists of blocks, without copies of keys."""
    size_q, size_k = _region_sizes(call.q.shape[1], call.k.shape[1], routes.shape[2])
    if (
        size_q is None
        or size_k is None
        or call.bounded
        or call.key_regions is not None
        or not call.lacks("bias", "query_positions", "key_positions", "query_segments")
    ):
        return False
    if call.mask is not None and (call.mask.shape[1] > 1 or call.mask.shape[2] > 1):
        return False
    pairs = (size_q // _region_block(size_q)) * (size_k // _region_block(size_k)) * routes.shape[2] ** 2
    return routes.shape[1] * pairs <= LIST_LIMIT


def _routed(call: AttentionCall, routes: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Routed regions by lists of blocks: (batch, q_length, heads, value_dim) and the log-sum-exp (batch, q_length,
    heads).
    """
    q, k, v, mask, scale = call.q, call.k, call.v, call.mask, call.scale
    batch, count, topk, own, dtype = q.shape[0], *routes.shape[2:], q.shape[1] // routes.shape[2], q.dtype
    size_q, size_k = _region_sizes(q.shape[1], k.shape[1], count)
    own_k = k.shape[1] // count
    assert size_q is not None
    assert size_k is not None
    if mask is None and count * size_k > k.shape[1]:
        mask = jnp.ones((1, 1, 1, k.shape[1]), bool)
    if mask is not None:
        mask = regions.padded(jnp.broadcast_to(mask, (*mask.shape[:3], k.shape[1])), count, size_k, 3)
    q, k, v = regions.padded(q, count, size_q), regions.padded(k, count, size_k), regions.padded(v, count, size_k)
    q, k, v = regions.cleaned(q, k, v, mask, routes)
    if dtype == jnp.float32:
        q, scale = scale * q, 1.0  # as in the op
    score = regions.of_padded(call.score, (own, own_k), (size_q, size_k))
    block_q, block_k = _region_block(size_q), _region_block(size_k)
    per_region = size_q // block_q, size_k // block_k
    visits = count * per_region[0] * topk * per_region[1]
    steps = topk * per_region[1], count * per_region[0]
    options = Options(
        None,
        None,
        scale,
        call.normalize,
        k.shape[1],
        block_q,
        block_k,
        None,
        visits,
        steps,
        dispatch.interpreted(),
        score=score,
    )

    def run(arrays: tuple[Any, ...]) -> tuple[jax.Array, jax.Array]:
        q, k, v, mask, routes = arrays
        cover, keys = blocks.routed_cover(routes, *per_region), None
        if mask is not None:
            cover = blocks.both(cover, blocks.key_cover(mask[:, :, 0], block_k))
            keys = jnp.where(mask[:, :, 0], jnp.arange(mask.shape[3], dtype=jnp.int32), -1)
        forth, back = blocks.lists(cover, steps[0]), blocks.lists(blocks.transposed(cover))
        where = Where(None, keys, None, None, None, None)
        out, lse = flash(
            options, cover.some.shape[:2], *(jnp.swapaxes(x, 1, 2) for x in (q, k, v)), where, _walk(forth), _walk(back)
        )
        return jnp.swapaxes(out, 1, 2), jnp.swapaxes(lse, 1, 2)

    lists = routes.shape[1] * steps[1] * count * per_region[1]  # entries of the longer lists of one row of the batch
    together = next(n for n in range(batch, 0, -1) if batch % n == 0 and n * lists <= LIST_LIMIT)
    if together == batch or (routes.shape[0] == 1 and mask is None):
        out, lse = run((q, k, v, mask, routes))
    else:
        # The lists of the whole batch do not fit scalar memory.
        arrays = (q, k, v, *(None if x is None else jnp.broadcast_to(x, (batch, *x.shape[1:])) for x in (mask, routes)))
        parts = jax.lax.map(run, jax.tree.map(lambda x: x.reshape(-1, together, *x.shape[1:]), arrays))
        out, lse = jax.tree.map(lambda x: x.reshape(batch, *x.shape[2:]), parts)
    return regions.unpadded(out, count, own), regions.unpadded(lse, count, own)


def _round_up(n: int, to: int) -> int:
    return -(-n // to) * to


@dataclasses.dataclass(frozen=True)
class Fold:
    """Several short rows of the batch folded into one: a block holds ``together`` of them, each of which attends only
    to itself.

    Attributes:
      q, k: tokens of a row, padded to powers of two.
    """

    q: int
    k: int
    together: int

    def rows(self, x: jax.Array, size: int) -> jax.Array:
        """(batch, length, ...) to (batch / together, together * size, ...)."""
        x = jnp.pad(x, ((0, -x.shape[0] % self.together), (0, size - x.shape[1]), *((0, 0),) * (x.ndim - 2)))
        return x.reshape(-1, self.together * size, *x.shape[2:])


def _fold_where(fold: Fold, batch: int, where: Where) -> Where:
    def rows(x: jax.Array | None, size: int) -> jax.Array | None:
        if x is None:
            return None
        return jnp.swapaxes(fold.rows(jnp.swapaxes(jnp.broadcast_to(x, (batch, *x.shape[1:])), 1, 2), size), 1, 2)

    bias = None if where.bias is None else jnp.tile(where.bias, (1, 1, fold.together, fold.together))
    queries, keys = rows(where.queries, fold.q), rows(where.keys, fold.k)
    return Where(queries, keys, rows(where.query_segments, fold.q), rows(where.key_segments, fold.k), None, bias)


def _fold(batch: int, q_length: int, k_length: int) -> Fold | None:
    """The folding of short rows; None where a row fills a block or is the only one."""
    q, k = (max(16, 1 << (n - 1).bit_length()) for n in (q_length, k_length))
    together = min(batch, BLOCKS[0] // max(q, k))
    return Fold(q, k, together) if together > 1 else None


def _block(length: int, least: int, wanted: int | None = None) -> int:
    """The block size: ``wanted`` by the mask, if there are as many; else the rounded length up to the largest size, and
    above it the largest size with at most an eighth of padding.
    """
    if wanted is not None and length > wanted:
        return wanted
    if length <= BLOCKS[0]:
        return _round_up(length, least if length <= LANES else LANES)
    return next((b for b in BLOCKS if -length % b <= length // 8), BLOCKS[-1])


def _seen(call: AttentionCall, kv_heads: int) -> tuple[Any, ...]:
    """Which queries attend to any key, (batch or 1, heads or 1, q_length), and which keys are attended to, (batch or 1,
    kv_heads or 1, k_length); None for all.
    """
    q_length, k_length, pattern = call.q.shape[1], call.k.shape[1], call.pattern
    if call.lacks("mask", "query_positions", "key_positions", "query_segments"):
        if pattern is not None:
            found = blocks.seen(*call.reach, pattern, q_length, k_length)
        elif call.reach == (None, None):
            return None, None
        else:
            found = blocks.band_seen(*call.reach, q_length, k_length)
        return tuple(None if x.all() else x[None, None] for x in found)
    # The compiler fuses this with the reduction: the matrix is never materialized.
    allowed = visible(*call.places, call.reach, pattern, call.mask, call.segments)
    allowed = jnp.broadcast_to(allowed, (*allowed.shape[:2], q_length, k_length))
    seen = allowed.any(2)
    if seen.shape[1] > 1:
        seen = seen.reshape(seen.shape[0], kv_heads, -1, k_length).any(2)
    return allowed.any(3), seen


def _where(call: AttentionCall) -> tuple[Where, jax.Array | None]:
    """The arrays that the kernel reads besides q, k and v; and a mask that depends only on queries (batch or 1, heads
    or 1, q_length), which is applied outside the kernel.
    """
    mask, attending, tiles = call.mask, None, None
    numbers = (call.query_positions, call.key_positions, call.query_segments, call.key_segments)
    queries, keys, query_ids, key_ids = (None if x is None else x.astype(jnp.int32)[:, None] for x in numbers)
    if mask is not None and mask.shape[2] == 1:
        at = jnp.arange(call.k.shape[1], dtype=jnp.int32) if keys is None else keys
        keys = jnp.where(mask[:, :, 0], at, -1)
    elif mask is not None and mask.shape[3] == 1:
        attending = mask[..., 0]
    elif mask is not None:
        tiles = mask.astype(jnp.int8)
    return Where(queries, keys, query_ids, key_ids, tiles, call.bias), attending


def _pad(where: Where, q_length: int, k_length: int) -> Where:
    """Pads to whole blocks. Padded keys are never attended to. Padded queries get the position and id of the last one,
    and padded keys its id, so that the range of no block grows.
    """
    queries, keys, query_ids, key_ids, *tiles = where

    def extend(x: jax.Array | None, length: int) -> jax.Array | None:
        return None if x is None else jnp.pad(x, ((0, 0), (0, 0), (0, length - x.shape[2])), mode="edge")

    queries, query_ids, key_ids = extend(queries, q_length), extend(query_ids, q_length), extend(key_ids, k_length)
    if keys is not None:
        keys = jnp.pad(keys, ((0, 0), (0, 0), (0, k_length - keys.shape[2])), constant_values=-1)
    mask, bias = (
        None if x is None else jnp.pad(x, ((0, 0), (0, 0), (0, q_length - x.shape[2]), (0, k_length - x.shape[3])))
        for x in tiles
    )
    return Where(queries, keys, query_ids, key_ids, mask, bias)


def _cover(
    where: Where,
    left: int | None,
    right: int | None,
    pattern: Mask | None,
    indexed: bool,
    q_length: int,
    k_length: int,
    block_q: int,
    block_k: int,
) -> tuple[blocks.Cover, tuple[int, int]]:
    """The summary (batch or 1, heads or 1, q_blocks, k_blocks), in numpy if it does not depend on data; and the most
    key blocks that a query block can visit, and query blocks that a key block can. ``indexed``: whether positions are
    indices.
    """
    parts: list[blocks.Cover] = []
    if indexed:
        parts.append(
            blocks.Cover(
                *(
                    x[None, None]
                    for x in blocks.static_cover(left, right, pattern, q_length, k_length, block_q, block_k)
                )
            )
        )
    if where.queries is not None or where.keys is not None:
        q_at = (
            jnp.arange(_round_up(q_length, block_q), dtype=jnp.int32)[None, None]
            if where.queries is None
            else where.queries
        )
        k_at = _places(k_length, block_k) if where.keys is None else where.keys
        rows = jnp.broadcast_shapes(q_at.shape[:2], k_at.shape[:2])
        q_at, k_at = (jnp.broadcast_to(x, (*rows, x.shape[2])).reshape(-1, x.shape[2]) for x in (q_at, k_at))
        part = blocks.position_cover(q_at, k_at, left, right, block_q, block_k)
        if pattern is not None and not indexed:
            part = blocks.both(part, blocks.pattern_cover(pattern, q_at, k_at, block_q, block_k))
        parts.append(blocks.Cover(*(x.reshape(*rows, *x.shape[1:]) for x in part)))
    if where.query_segments is not None and where.key_segments is not None:
        parts.append(
            blocks.Cover(
                *(
                    x[:, None]
                    for x in blocks.segment_cover(
                        where.query_segments[:, 0], where.key_segments[:, 0], block_q, block_k
                    )
                )
            )
        )
    if where.mask is not None:
        parts.append(blocks.mask_cover(where.mask != 0, block_q, block_k))
    cover = functools.reduce(blocks.both, parts)
    (*rows, q_blocks, k_blocks), most = cover.some.shape, cover.some.shape[:1:-1]
    if indexed:
        most = tuple(max(int(parts[0].some.sum(axis).max()), 1) for axis in (3, 2))
    if isinstance(cover.some, jax.Array) and math.prod(rows) * max(q_blocks * most[0], k_blocks * most[1]) > LIST_LIMIT:
        cover = blocks.Cover(cover.some.any((0, 1), keepdims=True), cover.every.all((0, 1), keepdims=True))
    return cover, most


def _places(length: int, block: int) -> jax.Array:
    at = jnp.arange(_round_up(length, block), dtype=jnp.int32)
    return jnp.where(at < length, at, -1)[None, None]


def _walk(lists: blocks.Lists) -> Walk:
    ids, full, count = (jnp.asarray(x) for x in lists)
    return Walk((2 * ids + full).astype(jnp.int32).reshape(-1), count.astype(jnp.int32).reshape(-1))
