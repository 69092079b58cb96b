"""Attention in JAX operations, for any platform: one block for short lengths, chunks of queries for long ones.

The weights of a chunk are recomputed in the backward pass, so that temporary memory is linear in length in both passes.
With default positions a bounded window reads only the keys of its band, and causal attention only the keys up to the
end of the chunk, in a few static steps. Rows of a batch are processed in turns where their logits do not fit a CPU's
caches. The gradient is hand-written at the level of the chunk loop, because autodiff would add a full-length gradient
of k and v for each chunk.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pallas_kernels import dispatch, mesh
from pallas_kernels.attention import lists, regions, relative
from pallas_kernels.attention.call import AttentionCall, Reach
from pallas_kernels.attention.masks import Mask, Score
from pallas_kernels.attention.reference import largest, visible
from pallas_kernels.attention.scores import finite_gradient
from primitives.differentiation import differentiable

DIRECT_LENGTH = 512  # unmasked attention up to this length is computed in one block
CHUNK = 128  # queries per chunk
CAUSAL_STEPS = 4  # static prefixes of the keys for causal attention: 5/8 of the work of reading all keys
BLOCK_BYTES = {"cpu": 2**23}  # of logits at a time: beyond a CPU's caches it was up to three times slower
OTHER_BLOCK_BYTES = 2**30

Arrays = dict[str, Any]
TABLES = ("relative_bias", "relative_weight", "relative_keys")


@dataclasses.dataclass(frozen=True)
class Options:
    """The static arguments, as one hashable value."""

    reach: Reach
    scale: float
    normalize: str
    pattern: Mask | None
    score: Score | None
    relative_origin: int | None
    finite: bool


def attention(call: AttentionCall) -> tuple[jax.Array, jax.Array]:
    """The op."""
    if call.routes is not None:
        out, lse = regions.gathered(attention, call)
        return out, lse
    options = Options(
        call.reach, call.scale, call.normalize, call.pattern, call.score, call.relative_origin, call.finite
    )
    q, sinks = call.q, call.sinks
    batch, length, heads, _ = q.shape
    kv_heads = call.k.shape[2]
    grouped = {
        "q": jnp.moveaxis(q.reshape(batch, length, kv_heads, heads // kv_heads, -1), 1, 3),  # (batch, kv, rep, q, d)
        "k": jnp.moveaxis(call.k, 1, 2),  # (batch, kv, k, d)
        "v": jnp.moveaxis(call.v, 1, 2),
        "bias": _group(call.bias, kv_heads),  # (batch, kv, rep, q, k), each its size or 1
        "bias_rest": _group(call.bias_rest, kv_heads),
        "mask": _group(call.mask, kv_heads),
        "sinks": None if sinks is None else sinks.reshape(kv_heads, -1),
        "query_positions": call.query_positions,
        "key_positions": call.key_positions,
        "query_segments": call.query_segments,
        "key_segments": call.key_segments,
        "rows": None
        if call.rows is None
        else _group(jnp.moveaxis(call.rows, 1, 2), kv_heads),  # (batch, kv, rep, q, n)
        "relative_query": None
        if call.relative_query is None
        else _group(jnp.moveaxis(call.relative_query, 1, 2), kv_heads),
        **{name: _group_heads(getattr(call, name), kv_heads) for name in TABLES},  # (kv, rep, span, ...)
    }
    out, lse = _by_rows(options, grouped)
    return jnp.moveaxis(out, 3, 1).reshape(batch, length, heads, -1), jnp.moveaxis(lse, 3, 1).reshape(
        batch, length, heads
    )


def _group(x: jax.Array | None, kv_heads: int) -> jax.Array | None:
    if x is None:
        return None
    heads = (1, 1) if x.shape[1] == 1 else (kv_heads, x.shape[1] // kv_heads)
    return x.reshape(x.shape[0], *heads, *x.shape[2:])


def _group_heads(x: jax.Array | None, kv_heads: int) -> jax.Array | None:
    return None if x is None else x.reshape(*((1, 1) if x.shape[0] == 1 else (kv_heads, -1)), *x.shape[1:])


def _by_rows(options: Options, arrays: Arrays) -> tuple[jax.Array, jax.Array]:
    """All rows of the batch together, or, if their logits are too many, some at a time, which are recomputed in the
    backward pass.
    """
    batch, kv_heads, rep, q_length, _ = arrays["q"].shape
    plan = _plan(options, arrays, 0)
    direct = _is_direct(options, arrays)
    queries, keys = (q_length, arrays["k"].shape[2]) if direct else (plan.chunk, plan.width)
    row_bytes = 4 * kv_heads * rep * queries * keys
    block_bytes = BLOCK_BYTES.get(dispatch.current_platform(), OTHER_BLOCK_BYTES)
    together = max(1, block_bytes // row_bytes)
    # A few blocks at once cost less than recomputing them (chunks do that anyway). No turns are taken where rows are
    # split over devices or their number is symbolic (jax.export).
    all_rows = jax.export.is_symbolic_dim(batch) or together >= batch
    if all_rows or (direct and batch * row_bytes <= 4 * block_bytes) or mesh.is_split():
        return _choose_form(options, arrays)
    own = {name: x for name, x in arrays.items() if x is not None and name not in OF_ALL and x.shape[0] == batch}

    def one(row: Arrays) -> tuple[jax.Array, jax.Array]:
        out, lse = _choose_form(options, {**arrays, **{name: x[None] for name, x in row.items()}})
        return out[0], lse[0]

    return lax.map(jax.checkpoint(one), own, batch_size=together)


def _is_direct(options: Options, arrays: Arrays) -> bool:
    """Whether all queries are computed in one block."""
    q_length, k_length = arrays["q"].shape[3], arrays["k"].shape[2]
    return q_length <= CHUNK or (options.reach == (None, None) and max(q_length, k_length) <= DIRECT_LENGTH)


def _choose_form(options: Options, arrays: Arrays) -> tuple[jax.Array, jax.Array]:
    if _is_direct(options, arrays):
        return _block(options, arrays, 0, 0)
    q_length, k_length = arrays["q"].shape[3], arrays["k"].shape[2]
    left, right = options.reach
    if options.pattern is not None and _indexed(arrays):
        groups = lists.groups(options.pattern, options.reach, q_length, k_length)
        if groups is not None:
            return _listed(options, groups, arrays)
    if not _indexed(arrays) or left is not None or right is None:
        return _in_order(options, 0, arrays)
    step = CHUNK * -(-q_length // (CHUNK * CAUSAL_STEPS))
    parts = []
    for start in range(0, q_length, step):
        stop = min(start + step, q_length)
        part = {
            name: _slice(name, _slice(name, x, "q", start, stop - start), "k", 0, min(stop + right, k_length))
            for name, x in arrays.items()
        }
        parts.append(_in_order(options, start, part))
    out, lse = zip(*parts, strict=True)
    return jnp.concatenate(out, axis=3), jnp.concatenate(lse, axis=3)


_FEW = 64
"""Up to so many queries of a head, keys are read where they are. Transposing them first costs a CPU a third of the time
of one query's product (0.56 ms with it, 0.35 without, for 384 keys of 12 heads of 64 features). With hundreds of
queries, product and gradient together are faster with it.
"""
# Which axis of an array runs over queries, and which over keys.
AXES = {
    "q": {"q": 3},
    "k": {"k": 2},
    "v": {"k": 2},
    "bias": {"q": 3, "k": 4},
    "bias_rest": {"q": 3, "k": 4},
    "mask": {"q": 3, "k": 4},
    "sinks": {},
    "query_positions": {"q": 1},
    "key_positions": {"k": 1},
    "query_segments": {"q": 1},
    "key_segments": {"k": 1},
    "rows": {"q": 3},
    "relative_query": {"q": 3},
    **{name: {} for name in TABLES},
}
OF_ALL = ("sinks", *TABLES)
"""Arrays without a batch axis."""
BROADCAST = ("bias", "bias_rest", "mask")
"""Arrays whose axes may be 1."""


def _axis(name: str, x: Any, over: str) -> int | None:
    """The axis of ``x`` over queries or keys, None where it has none or broadcasts along it."""
    axis = None if x is None else AXES[name].get(over)
    return None if axis is None or (x.shape[axis] == 1 and name in BROADCAST) else axis


def _slice(name: str, x: Any, over: str, start: Any, size: int) -> Any:
    axis = _axis(name, x, over)
    return x if axis is None else lax.dynamic_slice_in_dim(x, start, size, axis)


def _block(options: Options, arrays: Arrays, q_start: Any, k_start: Any) -> tuple[jax.Array, jax.Array]:
    """Attention of one block of queries to one block of keys; the starts determine default positions.

    Returns (batch, kv, rep, q, value_dim) in q's dtype and the log-sum-exp (batch, kv, rep, q).
    """
    q, k, v, sinks, base = arrays["q"], arrays["k"], arrays["v"], arrays["sinks"], None
    wide = jnp.promote_types(q.dtype, jnp.float32)
    allowed = _allowed(options, arrays, q_start, k_start)
    seen = None if options.finite else allowed
    if seen is not None:
        # 0 * NaN is NaN: keys that no query attends to, and queries that attend to nothing, may hold anything.
        q = jnp.where(seen.any(4)[..., None], q, 0)
        attended = seen.any((2, 3))[..., None]
        k, v = jnp.where(attended, k, 0), jnp.where(attended, v, 0)
    logits = _scores(q, k, wide)
    if arrays["relative_keys"] is not None:
        theirs = arrays["relative_query"]
        if theirs is not None and seen is not None:
            theirs = jnp.where(seen.any(4)[..., None], theirs, 0)
        logits = logits + _relative_products(options, arrays, q if theirs is None else theirs, q_start, k_start)
    logits = options.scale * logits
    if options.score is not None:
        heads = jnp.arange(q.shape[1] * q.shape[2], dtype=jnp.int32).reshape(1, q.shape[1], -1, 1, 1)
        q_positions, k_positions = _positions(arrays, q_start, k_start)
        rows = () if arrays["rows"] is None else jnp.moveaxis(arrays["rows"].astype(wide), 4, 0)[..., None]
        where = q_positions[:, None, None, :, None], k_positions[:, None, None, None]
        logits = finite_gradient(options.score)(logits, heads, *where, *rows).astype(wide)
    if arrays["bias"] is not None:
        bias = arrays["bias"].astype(wide)
        if arrays["bias_rest"] is not None:
            # The keys of large weight then have a small bias, which keeps the digits of the rest.
            top = largest(bias, allowed)
            bias, base = (bias - top) + arrays["bias_rest"].astype(wide), top[..., 0]
        logits = logits + bias
    if arrays["relative_bias"] is not None:
        logits = logits + _by_offset(options, arrays, "relative_bias", q_start, k_start)
    if allowed is not None:
        logits = jnp.where(allowed, logits, 0.0 if options.normalize == "none" else -jnp.inf)
    factor = (
        None if arrays["relative_weight"] is None else _by_offset(options, arrays, "relative_weight", q_start, k_start)
    )
    if options.normalize != "softmax":
        weights = jax.nn.sigmoid(logits) if options.normalize == "sigmoid" else logits
        out = _product((weights if factor is None else weights * factor).astype(v.dtype), v, wide)
        return out.astype(q.dtype), jnp.zeros(out.shape[:-1], wide)
    # The shift cancels in both results, so that it needs no gradient.
    shift = lax.stop_gradient(jnp.max(logits, axis=-1))
    if sinks is not None:
        sinks = sinks.astype(wide)[:, :, None] - (0 if base is None else base)
        shift = jnp.maximum(shift, lax.stop_gradient(sinks))
    shift = jnp.where(shift == -jnp.inf, 0.0, shift)
    weights = jnp.exp(logits - shift[..., None])
    total = jnp.sum(weights, axis=-1)
    if sinks is not None:
        total = total + jnp.exp(sinks - shift)
    empty = total == 0
    total = jnp.where(empty, 1.0, total)
    # Dividing after the product touches q x value_dim numbers instead of q x k.
    out = _product((weights if factor is None else weights * factor).astype(v.dtype), v, wide) / total[..., None]
    lse = shift + jnp.log(total)
    return out.astype(q.dtype), jnp.where(empty, -jnp.inf, lse if base is None else lse + base)


def _indexed(arrays: Arrays) -> bool:
    """Whether positions are indices."""
    return arrays["query_positions"] is None and arrays["key_positions"] is None


def _by_offset(options: Options, arrays: Arrays, name: str, q_start: Any, k_start: Any) -> jax.Array:
    """Entries of a table for a block: (batch or 1, kv or 1, rep or 1, q, k)."""
    table = arrays[name]
    table = table.astype(jnp.promote_types(table.dtype, jnp.float32))
    first = relative.origin(table[:, 0], options.relative_origin)
    if _indexed(arrays):
        return relative.spread(table, first, q_start, k_start, arrays["q"].shape[3], arrays["k"].shape[2])[None]
    at = relative.index(table[:, 0], first, *_positions(arrays, q_start, k_start))
    return jnp.moveaxis(table[:, :, at], 2, 0)


def _relative_products(options: Options, arrays: Arrays, q: jax.Array, q_start: Any, k_start: Any) -> jax.Array:
    """Products of a block's queries with the entries of ``relative_keys``: (batch, kv, rep, q, k)."""
    table = arrays["relative_keys"]
    first, (queries, keys) = relative.origin(table[:, 0], options.relative_origin), (q.shape[3], arrays["k"].shape[2])
    if _indexed(arrays):
        offsets = k_start - q_start + jnp.arange(queries + keys) - (queries - 1)
        table = jnp.take(table, jnp.clip(offsets - first, 0, table.shape[2] - 1), axis=2)
    table = jnp.broadcast_to(table, (*q.shape[1:3], *table.shape[2:]))
    products = jnp.einsum("bgrqd,grsd->bgrqs", q, table, preferred_element_type=jnp.promote_types(q.dtype, jnp.float32))
    if _indexed(arrays):
        return relative.shifted(products)
    at = relative.index(table[:, 0], first, *_positions(arrays, q_start, k_start))
    return jnp.take_along_axis(products, jnp.broadcast_to(at[:, None, None], (*products.shape[:4], keys)), 4)


def _product(rows: jax.Array, matrix: jax.Array, dtype: Any) -> jax.Array:
    """(batch, kv, rep, q, n) times (batch, kv, n, m).

    Heads that share keys become further rows of one product: with two row axes the compiler would transpose the weights
    for each gradient.
    """
    flat = rows.reshape(*rows.shape[:2], -1, rows.shape[-1])
    return jnp.matmul(flat, matrix, preferred_element_type=dtype).reshape(*rows.shape[:-1], matrix.shape[-1])


def _scores(q: jax.Array, k: jax.Array, dtype: Any) -> jax.Array:
    """Products of queries (batch, kv, rep, q, dim) and keys (batch, kv, k, dim): (batch, kv, rep, q, k)."""
    if q.shape[2] * q.shape[3] > _FEW:
        return _product(q, jnp.swapaxes(k, 2, 3), dtype)
    flat = q.reshape(*q.shape[:2], -1, q.shape[-1])
    found = lax.dot_general(flat, k, (((3,), (3,)), ((0, 1), (0, 1))), preferred_element_type=dtype)
    return found.reshape(*q.shape[:-1], k.shape[2])


def _allowed(options: Options, arrays: Arrays, q_start: Any, k_start: Any) -> jax.Array | None:
    """The mask, bool (batch, kv, rep, q, k), each its size or 1; None where every query attends to every key."""
    mask = arrays["mask"]
    segments = None if arrays["query_segments"] is None else (arrays["query_segments"], arrays["key_segments"])
    bounded = options.reach != (None, None) or options.pattern is not None
    if not bounded and arrays["key_positions"] is None and segments is None:
        return mask
    q_positions, k_positions = _positions(arrays, q_start, k_start)
    if not bounded:
        q_positions = jnp.zeros((1, 1), jnp.int32)
    allowed = visible(q_positions, k_positions, options.reach, options.pattern, segments=segments)[:, :, None]
    return allowed if mask is None else allowed & mask


def _positions(arrays: Arrays, q_start: Any, k_start: Any) -> tuple[jax.Array, jax.Array]:
    """Positions of a block's queries and keys, (batch or 1, q or k)."""
    lengths = {"query_positions": (q_start, arrays["q"].shape[3]), "key_positions": (k_start, arrays["k"].shape[2])}
    q, k = (
        (start + jnp.arange(n, dtype=jnp.int32))[None] if arrays[name] is None else arrays[name]
        for name, (start, n) in lengths.items()
    )
    return q, k


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a chunk loop splits queries and keys: consecutive chunks of queries, each with all keys or a band of them."""

    chunk: int
    count: int
    first: int  # position of the first query
    width: int  # keys that a chunk reads
    left: int | None  # None: every chunk reads all keys

    def cut(self, arrays: Arrays, index: Any) -> tuple[Arrays, Any, Any]:
        """Chunk ``index``: its arrays, and the positions of its first query and key."""
        q_start = index * self.chunk
        part = {name: _slice(name, x, "q", q_start, self.chunk) for name, x in arrays.items()}
        k_start = self._key(index, arrays["k"].shape[2])
        if self.left is not None:
            part = {name: _slice(name, x, "k", k_start, self.width) for name, x in part.items()}
        return part, self.first + q_start, k_start

    def add(self, name: str, total: jax.Array, part: jax.Array, index: Any, k_length: int) -> jax.Array:
        """Adds a chunk's gradient at the position of the chunk."""
        starts = [jnp.int32(0)] * total.ndim
        for over, start in (("q", index * self.chunk), ("k", self._key(index, k_length))):
            axis = _axis(name, total, over)
            if axis is not None:
                starts[axis] = jnp.asarray(start, jnp.int32)
        old = lax.dynamic_slice(total, starts, part.shape)
        return lax.dynamic_update_slice(total, old + part.astype(total.dtype), starts)

    def padded(self, arrays: Arrays) -> Arrays:
        """The arrays, padded to whole chunks of queries."""
        return _padded(arrays, "q", self.count * self.chunk)

    def _key(self, index: Any, k_length: int) -> Any:
        return (
            0 if self.left is None else jnp.clip(self.first + index * self.chunk - self.left, 0, k_length - self.width)
        )


def _plan(options: Options, arrays: Arrays, first: int) -> Plan:
    q_length, k_length = arrays["q"].shape[3], arrays["k"].shape[2]
    left, right = options.reach
    chunk, width = min(CHUNK, q_length), k_length
    if left is not None and right is not None and _indexed(arrays):
        # A short window in a long chunk computes mostly masked logits.
        chunk = min(chunk, max(64, 1 << (left + right).bit_length()))
        width = min(k_length, chunk + left + right)
    return Plan(chunk, -(-q_length // chunk), first, width, left if width < k_length else None)


@dataclasses.dataclass(frozen=True)
class ListedPlan:
    """Chunks of queries that attend to equally many blocks of keys, which are gathered for each chunk."""

    group: lists.Group

    @property
    def count(self) -> int:
        return len(self.group.chunks)

    def cut(self, arrays: Arrays, index: Any) -> tuple[Arrays, Any, Any]:
        """As :meth:`Plan.cut`, with positions among the arrays."""
        chunk, ids, keys = (
            jnp.asarray(table)[index] for table in (self.group.chunks, self.group.blocks, self.group.positions)
        )
        part = {name: _slice(name, x, "q", chunk * lists.CHUNK, lists.CHUNK) for name, x in arrays.items()}

        def blocks(name: str, x: Any) -> Any:
            axis = _axis(name, x, "k")
            if axis is None:
                return x
            x = x.reshape(*x.shape[:axis], -1, lists.BLOCK, *x.shape[axis + 1 :])
            return jnp.take(x, ids, axis).reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])

        part = {name: blocks(name, x) for name, x in part.items()}
        places = chunk * lists.CHUNK + jnp.arange(lists.CHUNK, dtype=jnp.int32)
        return part | {"query_positions": places[None], "key_positions": keys.reshape(1, -1)}, 0, 0

    def add(self, name: str, total: jax.Array, part: jax.Array, index: Any, k_length: int) -> jax.Array:
        """As :meth:`Plan.add`."""
        chunk, ids = (jnp.asarray(table)[index] for table in (self.group.chunks, self.group.blocks))
        q_axis, k_axis = (_axis(name, total, over) for over in ("q", "k"))
        if k_axis is None:
            starts = [jnp.int32(0)] * total.ndim
            if q_axis is not None:
                starts[q_axis] = chunk * lists.CHUNK
            old = lax.dynamic_slice(total, starts, part.shape)
            return lax.dynamic_update_slice(total, old + part.astype(total.dtype), starts)
        whole = total.reshape(*total.shape[:k_axis], -1, lists.BLOCK, *total.shape[k_axis + 1 :])
        part = part.reshape(*part.shape[:k_axis], -1, lists.BLOCK, *part.shape[k_axis + 1 :]).astype(total.dtype)
        # Repeated blocks at the end of a list are not attended to: they add zeros.
        at: list[Any] = [slice(None)] * whole.ndim
        at[k_axis] = ids
        if q_axis is None:
            return whole.at[tuple(at)].add(part).reshape(total.shape)
        strip = _slice(name, whole, "q", chunk * lists.CHUNK, lists.CHUNK).at[tuple(at)].add(part)
        return lax.dynamic_update_slice_in_dim(whole, strip, chunk * lists.CHUNK, q_axis).reshape(total.shape)

    def padded(self, arrays: Arrays) -> Arrays:
        """The arrays, padded to whole chunks of queries and whole blocks of keys."""
        q_length, k_length = arrays["q"].shape[3], arrays["k"].shape[2]
        return _padded(
            _padded(arrays, "q", q_length + -q_length % lists.CHUNK), "k", k_length + -k_length % lists.BLOCK
        )


def _padded(arrays: Arrays, over: str, length: int) -> Arrays:
    """Pads every array over queries, or keys, to ``length``; padded queries are cut off afterwards, padded keys have no
    position.
    """

    def pad(name: str, x: Any) -> Any:
        axis = _axis(name, x, over)
        if axis is None or (extra := length - x.shape[axis]) == 0:
            return x
        # Padded queries belong to no segment, so that they attend to nothing.
        filling = jnp.iinfo(x.dtype).min if name == "query_segments" else 0
        return jnp.pad(x, [(0, extra if a == axis else 0) for a in range(x.ndim)], constant_values=filling)

    return {name: pad(name, x) for name, x in arrays.items()}


def _in_order(options: Options, first: int, arrays: Arrays) -> tuple[jax.Array, jax.Array]:
    """All queries in consecutive chunks; the first query has the position ``first``."""
    out, lse = _chunked(options, _plan(options, arrays, first), arrays)
    return _unchunk(out, arrays["q"].shape[3]), _unchunk(lse, arrays["q"].shape[3])


def _listed(options: Options, groups: tuple[lists.Group, ...], arrays: Arrays) -> tuple[jax.Array, jax.Array]:
    """All queries, in groups of chunks that attend to equally many blocks of keys."""
    parts = [_chunked(options, ListedPlan(group), arrays) for group in groups]
    order = np.argsort(np.concatenate([group.chunks for group in groups]))
    out, lse = (jnp.concatenate(results)[order] for results in zip(*parts, strict=True))
    return _unchunk(out, arrays["q"].shape[3]), _unchunk(lse, arrays["q"].shape[3])


def _unchunk(x: jax.Array, length: int) -> jax.Array:
    """(chunks, batch, kv, rep, chunk, ...) to (batch, kv, rep, length, ...)."""
    x = jnp.moveaxis(x, 0, 3)
    return x.reshape(*x.shape[:3], -1, *x.shape[5:])[:, :, :, :length]


@differentiable(2)
def _chunked(options: Options, plan: Plan | ListedPlan, arrays: Arrays) -> tuple[jax.Array, jax.Array]:
    padded = plan.padded(arrays)
    return lax.map(lambda i: _block(options, *plan.cut(padded, i)), jnp.arange(plan.count))


def _chunked_forward(
    options: Options, plan: Plan | ListedPlan, arrays: Arrays
) -> tuple[tuple[jax.Array, jax.Array], Arrays]:
    return _chunked(options, plan, arrays), arrays


def _chunked_backward(
    options: Options, plan: Plan | ListedPlan, arrays: Arrays, cotangents: tuple[jax.Array, jax.Array]
) -> tuple[Arrays]:
    padded = plan.padded(arrays)
    floating = [name for name, x in arrays.items() if x is not None and jnp.issubdtype(x.dtype, jnp.floating)]
    k_length = padded["k"].shape[2]

    def step(sums: Arrays, indexed: Any) -> tuple[Arrays, None]:
        index, own = indexed
        part, q_start, k_start = plan.cut(padded, index)
        rest = {name: x for name, x in part.items() if name not in floating}
        _, pullback = jax.vjp(
            lambda f: _block(options, {**f, **rest}, q_start, k_start), {name: part[name] for name in floating}
        )
        (gradients,) = pullback(own)
        return {name: plan.add(name, sums[name], gradients[name], index, k_length) for name in floating}, None

    # A key's gradient is a sum over all chunks: accumulated in float32 for every dtype.
    zeros = {
        name: jnp.zeros(padded[name].shape, jnp.promote_types(padded[name].dtype, jnp.float32)) for name in floating
    }
    sums, _ = lax.scan(step, zeros, (jnp.arange(plan.count), cotangents))
    lengths = {"q": arrays["q"].shape[3], "k": arrays["k"].shape[2]}
    gradients = {}
    for name, x in sums.items():
        for over, length in lengths.items():
            x = _slice(name, x, over, 0, length)
        gradients[name] = x.astype(arrays[name].dtype)
    return ({name: gradients.get(name) for name in arrays},)


_chunked.define(_chunked_forward, _chunked_backward)
