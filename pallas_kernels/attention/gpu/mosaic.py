"""Block-sparse flash attention on Hopper GPUs (arXiv:2205.14135, arXiv:2407.08608), forward and backward.

Masks of keys, and biases that are the same for all queries, add a row to the logits; others add a tile. Windows and
causality are evaluated inside the kernels, in blocks that they cut. Blocks that no query attends to are not read: they
are found by arithmetic, or by lists made on the device (:mod:`pallas_kernels.attention.blocks`) if they depend on
positions, masks or routes. The keys of routed regions that are not nearly whole blocks are copied. Sinks are applied to
the output and its log-sum-exp. With a score's derivative, heads wider than 64 exhaust the registers: the gradient of
keys at 128 with a soft cap spills 72 bytes per thread. The kernels are in :mod:`pallas_kernels.attention.gpu.forward`
and ``backward``.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import hopper, mesh
from pallas_kernels.attention import blocks, regions
from pallas_kernels.attention.call import AttentionCall
from pallas_kernels.attention.gpu.backward import gradient_of_keys, gradient_of_queries
from pallas_kernels.attention.gpu.forward import forward
from pallas_kernels.attention.gpu.tiles import HIGHEST, LOG2E, ROWS, Spec
from pallas_kernels.attention.reference import visible
from primitives.differentiation import differentiable

HEAD_DIM_LIMIT = 128  # accumulators of wider heads do not fit a warpgroup's registers together with the logits
FEWEST_QUERIES = 8  # a tile has 64 rows: fewer queries would leave it mostly empty
LISTED_LENGTH = 512  # for fewer keys a list that skips padding does not pay
GRADIENT_BYTES = 2**30  # of the logits' gradient, which a bias for each pair needs

Arrays = dict[str, Any]


def objection(call: AttentionCall) -> str | None:
    """Why the kernels do not support the call, or None."""
    q, k, v, bias, mask = call.q, call.k, call.v, call.bias, call.mask
    if (reason := call.plain()) is not None:
        return reason
    if call.score is not None and mesh.splits_heads():
        return "its score depends on the head, and the mesh splits heads"
    if call.segments is not None:
        return "segments are given, which its tiles don't compare"
    if call.routes is not None and not _lists_serve(call, call.routes):
        return regions.objection(objection, call)
    (batch, q_length, heads, _), (k_length, kv_heads) = q.shape, k.shape[1:3]
    if q.dtype not in (jnp.float16, jnp.bfloat16) or not q.dtype == k.dtype == v.dtype:
        return f"it takes float16 or bfloat16, the same for q, k and v, not {q.dtype}, {k.dtype} and {v.dtype}"
    if max(q.shape[3], v.shape[3]) > HEAD_DIM_LIMIT:
        return f"head_dim {max(q.shape[3], v.shape[3])} is above {HEAD_DIM_LIMIT}"
    if q_length < FEWEST_QUERIES:
        return f"{q_length} queries do not fill a tile of {ROWS}"
    if max(batch, heads) > 65535:
        return f"a grid has at most 65535 rows and heads, here are {batch} and {heads}"
    if any(x is not None and x.shape[2] > 1 for x in (bias, mask)):
        held = batch * heads * q_length * k_length * 4
        if held > GRADIENT_BYTES:
            return f"a bias or mask for each query and key, with its gradient, would take {held / 2**30:.1f} GiB"
    if heads != kv_heads and any(x is not None and x.shape[1] > 1 and x.shape[2] == 1 for x in (bias, mask)):
        return "a bias or mask of keys differs between heads that share keys"
    return hopper.objection()


def attention(call: AttentionCall) -> tuple[Any, ...]:
    """The op."""
    q, k, v, bias, mask = call.q, call.k, call.v, call.rounded_bias, call.mask
    routes, score = call.routes, call.score
    own, sizes = q.shape[1], None
    if routes is not None:
        if not _lists_serve(call, routes):
            return regions.gathered(attention, call)
        lengths = own // routes.shape[2], k.shape[1] // routes.shape[2]
        q, k, v, mask, sizes = _whole_regions(q, k, v, mask, routes)
        score = regions.of_padded(score, lengths, sizes)
    (batch, q_length, heads, _), (k_length, kv_heads), value_dim = q.shape, k.shape[1:3], v.shape[3]
    query_positions, key_positions = call.query_positions, call.key_positions
    if key_positions is not None and not call.ordered:
        filled = (key_positions >= 0)[:, None, None]
        mask = filled if mask is None else mask & filled
    if not call.ordered:
        query_positions = key_positions = None
    if routes is None:
        q, k, v = _cleaned(call.replace(mask=mask, query_positions=query_positions, key_positions=key_positions))
    wide = k_length > 64 if sizes is None else sizes[1] % 128 == 0
    consumers = 2 if (q_length > ROWS if sizes is None else wide and sizes[0] % 128 == 0) else 1
    per_pair = any(x is not None and x.shape[2] > 1 for x in (bias, mask))
    spec = Spec(
        batch=batch,
        heads=heads,
        kv_heads=kv_heads,
        q_length=-(-q_length // 8) * 8,
        k_length=-(-k_length // 8) * 8,
        keys=k_length,
        reach=call.reach,
        scale=call.scale,
        sigmoid=call.normalize == "sigmoid",
        consumers=consumers,
        block=64 if per_pair or not wide else 128,
        back_block=64,
        every_block=bias is not None and bias.shape[2] > 1,
        pattern=call.pattern,
        score=score,
    )
    arrays = {"q": _padded(q, spec.q_length), "k": _padded(k, spec.k_length), "v": _padded(v, spec.k_length)}
    arrays |= _added_to_logits(spec, bias, mask, query_positions is not None or key_positions is not None)
    arrays |= _visited(spec, q_length, mask, query_positions, key_positions, routes)
    gradient_of_key_bias = bias is not None and bias.shape[2] == 1
    if isinstance(counts := arrays.get("counts"), np.ndarray):
        pairs = int(counts[..., 1].sum()) * spec.tile * spec.block
    else:
        pairs = spec.q_length * spec.keys if "q_positions" in arrays else _pairs(spec)
    if sizes is not None and routes is not None:
        pairs = spec.q_length * routes.shape[3] * sizes[1]
    out, lse = _flash(spec, pairs, gradient_of_key_bias, arrays)
    out, lse = out[:, :q_length, :, :value_dim], jnp.swapaxes(lse, 1, 2)[:, :q_length]
    if call.sinks is not None:
        without, lse = lse, jnp.logaddexp(lse, call.sinks.astype(jnp.float32))
        out = (out * jnp.exp(without - lse)[..., None]).astype(q.dtype)
    if routes is not None:
        out, lse = (regions.unpadded(x, routes.shape[2], own // routes.shape[2]) for x in (out, lse))
    return out, lse


def _lists_serve(call: AttentionCall, routes: jax.Array) -> bool:
    """Whether routed regions are served by lists of blocks, without copies of keys."""
    if any(regions.padded_size(x.shape[1], routes.shape[2], ROWS) is None for x in (call.q, call.k)):
        return False
    if call.bounded or call.key_regions is not None or not call.lacks("bias", "query_positions", "key_positions"):
        return False
    if routes.shape[1] > 1 and call.q.shape[2] > call.k.shape[2]:
        return False  # a list of keys' blocks serves all heads that share them
    return call.mask is None or _of_keys(call.mask)


def _whole_regions(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None, routes: jax.Array
) -> tuple[Any, ...]:
    """The arrays with regions padded to whole blocks, the mask that hides the padding, and the sizes of the query and
    key regions.
    """
    count = routes.shape[2]
    sizes = [size for x in (q, k) if (size := regions.padded_size(x.shape[1], count, ROWS)) is not None]
    if mask is None and count * sizes[1] > k.shape[1]:
        mask = jnp.ones((1, 1, 1, k.shape[1]), bool)
    if mask is not None:
        mask = regions.padded(jnp.broadcast_to(mask, (*mask.shape[:3], k.shape[1])), count, sizes[1], 3)
    q, k, v = (regions.padded(x, count, size) for x, size in ((q, sizes[0]), (k, sizes[1]), (v, sizes[1])))
    return *regions.cleaned(q, k, v, mask, routes), mask, tuple(sizes)


def _padded(x: jax.Array, length: int) -> jax.Array:
    """``x`` (batch, length, heads, head_dim) padded to ``length`` tokens and to a multiple of 32 features, as TMA and
    wgmma require.
    """
    return jnp.pad(x, ((0, 0), (0, length - x.shape[1]), (0, 0), (0, -x.shape[3] % 32)))


def _cleaned(call: AttentionCall) -> tuple[jax.Array, jax.Array, jax.Array]:
    """q, k and v with zeros for queries that attend to nothing and keys that no query attends to, which may hold
    anything: 0 * NaN is NaN.

    With both a mask and positions, only those are found that one of the two excludes by itself.
    """
    q, k, v, mask, (left, right), pattern = call.q, call.k, call.v, call.mask, call.reach, call.pattern
    if call.finite:
        return q, k, v
    seeing: Any = True
    seen: Any = True
    if mask is not None:
        seeing, seen = mask.any((1, 3))[:, :, None, None], mask.any((1, 2))[:, :, None, None]
    if not call.lacks("query_positions", "key_positions"):
        at_q, at_k = call.places
        if pattern is not None:
            # The compiler fuses this with the reduction: the matrix is never materialized.
            found = visible(at_q, at_k, call.reach, pattern)[:, 0]
            seeing, seen = seeing & found.any(2)[:, :, None, None], seen & found.any(1)[:, :, None, None]
        far = jnp.iinfo(jnp.int32).max // 2
        first_k, last_k = jnp.where(at_k >= 0, at_k, far).min(1, keepdims=True), at_k.max(1, keepdims=True)
        sees, is_seen = last_k >= 0, at_k >= 0
        if left is not None:
            sees, is_seen = sees & (last_k >= at_q - left), is_seen & (at_k >= at_q.min(1, keepdims=True) - left)
        if right is not None:
            sees, is_seen = sees & (first_k <= at_q + right), is_seen & (at_k <= at_q.max(1, keepdims=True) + right)
        seeing, seen = seeing & sees[:, :, None, None], seen & is_seen[:, :, None, None]
    elif left is not None or right is not None or pattern is not None:
        lengths = q.shape[1], k.shape[1]
        bands = (
            blocks.band_seen(left, right, *lengths) if pattern is None else blocks.seen(left, right, pattern, *lengths)
        )
        if not all(x.all() for x in bands):
            seeing, seen = (x & band[None, :, None, None] for x, band in zip((seeing, seen), bands, strict=True))
    q = q if seeing is True else jnp.where(seeing, q, 0)
    return (q, k, v) if seen is True else (q, jnp.where(seen, k, 0), jnp.where(seen, v, 0))


def _added_to_logits(spec: Spec, bias: Any, mask: Any, positions: bool) -> Arrays:
    """Terms that are added to the logits to base 2, float32, -inf where masked: one per key (key_bias), or one per pair
    (bias).
    """
    terms: Arrays = {}

    def add(name: str, term: jax.Array) -> None:
        terms[name] = terms[name] + term if name in terms else term

    if bias is not None:
        add("key_bias" if bias.shape[2] == 1 else "bias", bias.astype(jnp.float32) * LOG2E)
    if mask is not None and not (positions and _of_keys(mask)):
        add("key_bias" if mask.shape[2] == 1 else "bias", jnp.where(mask, 0.0, -jnp.inf))
    if "key_bias" in terms:
        row = terms["key_bias"]
        row = jnp.broadcast_to(row, (*row.shape[:3], spec.keys))[:, :, 0]
        terms["key_bias"] = jnp.pad(row, ((0, 0), (0, 0), (0, spec.k_padded - spec.keys)), constant_values=-jnp.inf)
    if "bias" in terms:
        tile = terms["bias"]
        tile = jnp.broadcast_to(tile, (*tile.shape[:2], tile.shape[2], spec.keys))
        terms["bias"] = jnp.pad(
            tile, ((0, 0), (0, 0), (0, spec.q_padded - tile.shape[2]), (0, spec.k_padded - spec.keys))
        )
    return terms


def _of_keys(mask: jax.Array) -> bool:
    """Whether a mask depends only on the key, not on the head or query."""
    return mask.shape[1] == mask.shape[2] == 1


def _visited(spec: Spec, q_length: int, mask: Any, query_positions: Any, key_positions: Any, routes: Any) -> Arrays:
    """Positions, where given, and lists of blocks, where arithmetic can't find the blocks."""
    left, right = spec.reach
    found: Arrays = {}
    if routes is not None:
        count = routes.shape[2]

        def cover(block_q: int, block_k: int) -> blocks.Cover:
            per_region = spec.q_length // count // block_q, spec.k_length // count // block_k
            routed = blocks.routed_cover(routes, *per_region)
            if mask is None:
                return routed
            some = blocks.key_cover(mask[:, :, 0], block_k).some
            return blocks.both(routed, blocks.Cover(some, jnp.ones_like(some)))  # masked keys within a block: see below

        # All query blocks of a region have the same list.
        lists = _ordered(
            cover(block_q=spec.tile, block_k=spec.block), routes.shape[3] * (spec.k_length // count // spec.block)
        )
        back = _ordered(blocks.transposed(cover(block_q=spec.back_block, block_k=spec.tile)))
        return {"counts": lists[0], "blocks": lists[1], "back_counts": back[0], "back_blocks": back[1]}
    if query_positions is not None or key_positions is not None:
        at_q = jnp.arange(q_length)[None] if query_positions is None else query_positions
        at_k = jnp.arange(spec.keys)[None] if key_positions is None else key_positions
        if mask is not None and _of_keys(mask):
            at_k = jnp.where(mask[:, 0, 0], at_k, -1)
        at_q = jnp.pad(at_q.astype(jnp.int32), ((0, 0), (0, spec.q_padded - q_length)), mode="edge")
        at_k = jnp.pad(at_k.astype(jnp.int32), ((0, 0), (0, spec.k_padded - spec.keys)), constant_values=-1)
        found = {"q_positions": at_q[:, None], "k_positions": at_k[:, None]}

        def cover(block_q: int, block_k: int) -> blocks.Cover:
            positions = blocks.position_cover(at_q, at_k, left, right, block_q, block_k)
            if spec.pattern is None:
                return positions
            return blocks.both(positions, blocks.pattern_cover(spec.pattern, at_q, at_k, block_q, block_k))
    elif spec.pattern is not None or (mask is not None and _of_keys(mask) and spec.keys >= LISTED_LENGTH):

        def cover(block_q: int, block_k: int) -> blocks.Cover:
            static = blocks.static_cover(left, right, spec.pattern, spec.q_length, spec.keys, block_q, block_k)
            if mask is None or not _of_keys(mask):
                return blocks.Cover(static.some[None], static.every[None])
            real = jnp.pad(
                jnp.broadcast_to(mask[:, 0, 0], (mask.shape[0], spec.keys)), ((0, 0), (0, spec.k_padded - spec.keys))
            )
            some = real.reshape(real.shape[0], 1, -1, block_k).any(3)[:, :, : static.some.shape[1]]
            # Masked keys within a block are hidden by the terms added to the logits.
            return blocks.both(blocks.Cover(static.some, static.every), blocks.Cover(some, jnp.ones_like(some)))
    else:
        return {}
    if spec.every_block:
        return found | _all_cut(spec)
    lists = _ordered(cover(block_q=spec.tile, block_k=spec.block))
    back = _ordered(blocks.transposed(cover(block_q=spec.back_block, block_k=spec.tile)))
    return found | {"counts": lists[0], "blocks": lists[1], "back_counts": back[0], "back_blocks": back[1]}


def _ordered(cover: blocks.Cover, most: int | None = None) -> tuple[Any, Any]:
    """A cover (batch, tiles, blocks) or (batch, heads, tiles, blocks) as the lists of :func:`tiles.visit`: whole blocks
    first, at most ``most``; numpy if the cover is.
    """
    xp: Any = np if isinstance(cover.some, np.ndarray) else jnp
    kind = xp.where(cover.some, xp.where(cover.every, 0, 1), 2)
    kind = kind if kind.ndim == 4 else kind[:, None]
    counts = xp.stack([(kind == 0).sum(-1), (kind < 2).sum(-1)], axis=-1)
    most = max(int(counts.max()), 1) if xp is np else most
    return counts.astype(np.int32), xp.argsort(kind, axis=-1, stable=True)[..., :most].astype(np.int32)


def _all_cut(spec: Spec) -> Arrays:
    """Lists of all blocks, with positions compared in each."""

    def every(rows: int, count: int) -> tuple[jax.Array, jax.Array]:
        counts = jnp.broadcast_to(jnp.array([0, count], jnp.int32), (1, 1, rows, 2))
        return counts, jnp.broadcast_to(jnp.arange(count, dtype=jnp.int32), (1, 1, rows, count))

    lists = every(spec.q_tiles, spec.k_padded // spec.block)
    back = every(spec.k_tiles, spec.q_padded // spec.back_block)
    return {"counts": lists[0], "blocks": lists[1], "back_counts": back[0], "back_blocks": back[1]}


def _pairs(spec: Spec) -> int:
    """The approximate number of query-key pairs that a head computes with default positions, including blocks that a
    window or causality cuts.
    """
    left, right = spec.reach
    width = spec.keys
    if left is not None and right is not None:
        width = min(width, left + right + spec.tile + spec.block)
    elif left is not None or right is not None:
        width = min(width, (width + spec.block) // 2 + (left or right or 0))
    return spec.q_length * width


FORWARD = ("q", "k", "v", "key_bias", "bias", "q_positions", "k_positions", "counts", "blocks")


@differentiable(3, kernel=True)
def _flash(spec: Spec, pairs: int, gradient_of_key_bias: bool, arrays: Arrays) -> tuple[jax.Array, jax.Array]:
    """The output, and the log-sum-exp (batch, heads, q_padded)."""
    del gradient_of_key_bias
    out, lse = forward(spec, {name: arrays.get(name) for name in FORWARD}, pairs)
    return out, jnp.zeros_like(lse) if spec.sigmoid else lse


def _flash_forward(spec: Spec, pairs: int, gradient_of_key_bias: bool, arrays: Arrays) -> tuple[Any, Any]:
    out, lse = _flash(spec, pairs, gradient_of_key_bias, arrays)
    return (out, lse), (arrays, out, lse)


def _flash_backward(
    spec: Spec, pairs: int, gradient_of_key_bias: bool, residuals: Any, cotangents: Any
) -> tuple[Arrays]:
    arrays, out, lse = residuals
    of_out, of_lse = cotangents
    inputs = {name: arrays.get(name) for name in FORWARD} | {"do": of_out.astype(out.dtype)}
    if not spec.sigmoid:
        empty = jnp.isneginf(lse) | (jnp.arange(spec.q_padded) >= spec.q_length)
        lost = jnp.einsum("bqhd,bqhd->bhq", out.astype(jnp.float32), of_out.astype(jnp.float32))
        lost = jnp.pad(lost, ((0, 0), (0, 0), (0, spec.q_padded - spec.q_length))) - of_lse
        inputs |= {"lse": jnp.where(empty, HIGHEST, lse * LOG2E), "delta": jnp.where(empty, 0.0, lost)}
    of_queries = gradient_of_queries(spec, inputs, pairs)
    turned = inputs | {"counts": arrays.get("back_counts"), "blocks": arrays.get("back_blocks")}
    if turned["bias"] is not None:
        turned["bias"] = jnp.swapaxes(turned["bias"], 2, 3)
    of_keys = gradient_of_keys(spec, turned, pairs, gradient_of_key_bias)
    gradients = dict(zip(("q", "k", "v"), (of_queries[0], *of_keys[:2]), strict=True))
    if spec.every_block:
        gradients["bias"] = _summed(of_queries[1], arrays["bias"]) / LOG2E
    if gradient_of_key_bias:
        gradients["key_bias"] = _summed(of_keys[2], arrays["key_bias"]) / LOG2E
    return ({name: gradients.get(name) for name in arrays},)


def _summed(gradient: jax.Array, like: jax.Array) -> jax.Array:
    """Sums a gradient, given for each batch element and head, over those that share ``like``."""
    shared = tuple(axis for axis in (0, 1) if like.shape[axis] < gradient.shape[axis])
    return gradient.sum(shared, keepdims=True) if shared else gradient


_flash.define(_flash_forward, _flash_backward)
