"""Chunkwise linear attention: matrix products inside a chunk, and a scan that carries the state between chunks.

With g the log decays, token i of a chunk reads token j <= i with the weight exp(g_{j+1} + ... + g_i). These sums are
built by doubling: for blocks of 2, 4, 8, ... tokens, `since` (from the block's start through i) and `until` (from after
j to the block's end) are made from those of two neighbors. Every exponent is thus a sum of non-positive numbers, never
a difference of two long sums: nothing overflows or cancels, and -inf is allowed. A decay per head multiplies the
scores. With a decay per key dimension each pair of neighboring blocks needs one matrix product, of late queries times
exp(since) with early keys times exp(until). A decay per value dimension multiplies early values by exp(until), and the
results of late tokens by exp(since).

For packed documents only pairs of tokens within one document remain, by masking scores and states; the decays do not
change.

In both directions with constant decays, a short sequence is computed at once from all its pairs, with scores shared by
both directions.

The gradient stores the states at chunk boundaries and recomputes everything else.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.documents import Documents
from pallas_kernels.linear_attention.call import LinearCall
from primitives.differentiation import differentiable

# The arrays of a chunk: q, k (batch, groups, chunk, key_dim), v (batch, groups, repeats, chunk, value_dim) and
# decay (batch or 1, groups, repeats, chunk, key_dim or 1) and value_decay (batch, groups, repeats, chunk, value_dim),
# one of them or none; besides them starts (batch, chunk) or None. The state is (batch, groups, repeats, key_dim,
# value_dim).
Chunk = tuple[jax.Array, jax.Array, jax.Array, jax.Array | None, jax.Array | None]

PAIRS = 256
"""The largest length at which all pairs are computed at once, in both directions with constant decays. On two CPU cores
the gradient takes 0.2 to 0.5 of the chunkwise form's time up to 197 tokens, and 0.5 to 0.9 of it at 256.
"""


def linear_attention(call: LinearCall) -> tuple[jax.Array, jax.Array]:
    """The op."""
    q, k, v, starts, scale, wide = call.q, call.k, call.v, call.starts, call.scale, call.wide
    batch, length, heads, value_dim = v.shape
    groups, key_dim = q.shape[2:]
    repeats = heads // groups
    values = v.reshape(batch, length, groups, repeats, value_dim)

    def by_group(decay: jax.Array | None) -> jax.Array | None:
        if decay is None:
            return None
        logs = jnp.broadcast_to(decay, (1, length, heads)) if decay.ndim == 1 else decay
        return logs.astype(wide).reshape(*logs.shape[:2], groups, repeats, -1)

    logs, value_logs = by_group(call.decay), by_group(call.value_decay)
    shape = (batch, groups, repeats, key_dim, value_dim)
    state = call.start.reshape(shape)

    if not call.causal and logs is None and value_logs is None and starts is None:
        summary = jnp.einsum("btgk,btgrv->bgrkv", k.astype(wide), values.astype(wide))
        out = scale * jnp.einsum("btgk,bgrkv->btgrv", q.astype(wide), summary)
    elif (rates := _constant(call)) is not None and length <= PAIRS:
        left, right = (rate.astype(wide).reshape(groups, repeats, 1, 1) for rate in rates)
        out = jax.checkpoint(_pairs)(scale, *(x.astype(wide) for x in (q, k, values)), left, right, starts)
    elif length == 1:
        out, state = _step(scale, q, k, values, logs, value_logs, Documents.of(starts).carried(state))
    else:
        # A sequence shorter than a chunk is one chunk of the next power of two.
        chunk_size = min(call.chunk_size, 1 << (length - 1).bit_length())
        out, state = _recurrence(chunk_size, False, scale, q, k, values, logs, value_logs, starts, state)
        if not call.causal:
            # From the right a document starts at its last token.
            begins = None if starts is None else jnp.roll(starts, -1, axis=1)
            backward = logs if call.backward_decay is None else by_group(call.backward_decay)
            flipped = [None if x is None else jnp.flip(x, 1) for x in (q, k, values, backward, value_logs, begins)]
            out = out + jnp.flip(_recurrence(chunk_size, True, scale, *flipped, jnp.zeros(shape, wide))[0], 1)
    return out.astype(v.dtype).reshape(v.shape), state.reshape(batch, heads, key_dim, value_dim)


def _constant(call: LinearCall) -> tuple[jax.Array, jax.Array] | None:
    """The decays from the left and from the right if the call is not causal and they are constants per head, else
    None.
    """
    left, right = call.decay, call.decay if call.backward_decay is None else call.backward_decay
    if call.causal or left is None or right is None or left.ndim > 1 or right.ndim > 1:
        return None
    return left, right


def _pairs(
    scale: float,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    decay: jax.Array,
    backward: jax.Array,
    starts: jax.Array | None,
) -> jax.Array:
    """Both directions at once, with decays (groups, repeats, 1, 1): (batch, length, groups, repeats, value_dim)."""
    distance = jnp.arange(q.shape[1])[:, None] - jnp.arange(q.shape[1])
    # At distance 0 the product could be 0 * -inf.
    logs = jnp.where(distance == 0, 0, jnp.where(distance > 0, distance * decay, -distance * backward))
    scores = scale * jnp.einsum("bigk,bjgk->bgij", q, k)[:, :, None] * jnp.exp(logs)
    if starts is not None:
        scores = jnp.where(Documents.of(starts).seen(jnp.ones(distance.shape, bool), between=2), scores, 0)
    return jnp.einsum("bgrij,bjgrv->bigrv", scores, v)


def _step(
    scale: float,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    decay: jax.Array | None,
    value_decay: jax.Array | None,
    state: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """One token, as used in decoding."""
    query, key, value = (x[:, 0].astype(state.dtype) for x in (q, k, v))
    if decay is not None:
        state = jnp.exp(decay[:, 0])[..., None] * state
    if value_decay is not None:
        state = jnp.exp(value_decay[:, 0])[..., None, :] * state
    state = state + key[:, :, None, :, None] * value[..., None, :]
    # One product for each head: heads that share a query as one product would need a transposed state.
    query = jnp.broadcast_to(query[:, :, None], state.shape[:4])
    return scale * jnp.einsum("bgrk,bgrkv->bgrv", query, state)[:, None], state


@differentiable(3)
def _recurrence(
    chunk_size: int,
    strict: bool,
    scale: float,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    decay: jax.Array | None,
    value_decay: jax.Array | None,
    starts: jax.Array | None,
    state: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """All tokens in order, in the state's dtype; with ``strict`` a token does not read itself."""
    return _forward(chunk_size, strict, scale, q, k, v, decay, value_decay, starts, state)[0]


def _forward(chunk_size: int, strict: bool, scale: float, *arrays: Any) -> tuple[Any, Any]:
    *tokens, starts, state = arrays

    def body(state: jax.Array, inputs: Any) -> tuple[jax.Array, Any]:
        chunk, starts = inputs
        after, out = _chunk(strict, scale, Documents.of(starts), state, chunk)
        return after, (out, state)

    chunks = tuple(split(x, chunk_size) for x in tokens)
    state, (out, boundaries) = jax.lax.scan(body, state, (chunks, split_starts(starts, chunk_size)))
    return (join(out, tokens[0].shape[1]), state), (tokens, starts, boundaries)


def _backward(chunk_size: int, strict: bool, scale: float, residuals: Any, cotangents: Any) -> tuple[Any, ...]:
    tokens, starts, boundaries = residuals
    d_out, d_state = cotangents

    def body(d_state: jax.Array, inputs: Any) -> tuple[jax.Array, Any]:
        before, chunk, starts, d_out = inputs
        _, pull = jax.vjp(functools.partial(_chunk, strict, scale, Documents.of(starts)), before, chunk)
        return pull((d_state, d_out))

    chunks = tuple(split(x, chunk_size) for x in tokens)
    inputs = (boundaries, chunks, split_starts(starts, chunk_size), split(d_out, chunk_size))
    d_state, d_chunks = jax.lax.scan(body, d_state, inputs, reverse=True)
    return (*(None if x is None else join(x, d_out.shape[1]) for x in d_chunks), None, d_state)


_recurrence.define(_forward, _backward)


def split(x: jax.Array | None, chunk_size: int) -> jax.Array | None:
    """(batch, length, ..., dim) to (chunks, batch, ..., chunk, dim), padded with zeros, which leave the state
    unchanged.
    """
    if x is None:
        return None
    x = jnp.pad(x, [(0, 0), (0, -x.shape[1] % chunk_size)] + [(0, 0)] * (x.ndim - 2))
    x = x.reshape(x.shape[0], -1, chunk_size, *x.shape[2:])
    return jnp.moveaxis(x, (1, 2), (0, -2))


def split_starts(starts: jax.Array | None, chunk_size: int) -> jax.Array | None:
    """(batch, length) to (chunks, batch, chunk), with no starts in the padding."""
    padded = split(None if starts is None else starts[..., None], chunk_size)
    return None if padded is None else padded[..., 0]


def join(x: jax.Array, length: int) -> jax.Array:
    """The inverse of :func:`split`."""
    x = jnp.moveaxis(x, (0, -2), (1, 2))
    return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :length]


def _chunk(
    strict: bool, scale: float, packed: Documents, state: jax.Array, chunk: Chunk
) -> tuple[jax.Array, jax.Array]:
    """One chunk: the state after it, and its outputs (batch, groups, repeats, chunk, value_dim)."""
    q, k, v, decay, value_decay = chunk
    q, k, v = scale * q.astype(state.dtype), k.astype(state.dtype), v.astype(state.dtype)
    if value_decay is not None:
        return _chunk_per_feature(strict, packed, state, q, k, v, value_decay, of_keys=False)
    if decay is not None and decay.shape[-1] > 1:
        return _chunk_per_feature(strict, packed, state, q, k, v, decay, of_keys=True)
    scores = jnp.einsum("bgik,bgjk->bgij", q, k)[:, :, None]
    visible = packed.seen(jnp.tril(jnp.ones(scores.shape[-2:], bool), -1 if strict else 0), between=2)
    carried = packed.continuing(jnp.einsum("bgik,bgrkv->bgriv", q, state), -2)
    written, state = packed.last(v, -2), packed.carried(state)
    if decay is None:
        out = jnp.where(visible, scores, 0) @ v + carried
        return state + jnp.einsum("bgjk,bgrjv->bgrkv", k, written), out
    between, since, until = pairwise(decay[..., 0])
    weights = jnp.exp(jnp.where(visible, between, -jnp.inf))
    out = (scores * weights) @ v + jnp.exp(since)[..., None] * carried
    # The decay is applied to v, so that k stays one array per group.
    update = jnp.einsum("bgjk,bgrjv->bgrkv", k, written * jnp.exp(until)[..., None])
    return jnp.exp(since[..., -1])[..., None, None] * state + update, out


def _chunk_per_feature(
    strict: bool,
    packed: Documents,
    state: jax.Array,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    decay: jax.Array,
    *,
    of_keys: bool,
) -> tuple[jax.Array, jax.Array]:
    """One chunk with a decay per key dimension, or per value dimension; results as :func:`_chunk`."""

    def keys(x: jax.Array, log: jax.Array) -> jax.Array:
        return x * jnp.exp(log) if of_keys else x

    def values(x: jax.Array, log: jax.Array) -> jax.Array:
        return x if of_keys else x * jnp.exp(log)

    # Batch, groups and repeats are merged: XLA is slower with axes of size 1 between them.
    state_shape, shape = state.shape, v.shape
    q, k = (jnp.broadcast_to(x[:, :, None], (*decay.shape[:-1], x.shape[-1])) for x in (q, k))
    q, k, v, decay, state = (x.reshape(-1, *x.shape[-2:]) for x in (q, k, v, decay, state))
    packed = packed.of_each(q.shape[0] // state_shape[0])
    out = jnp.zeros_like(v) if strict else jnp.sum(q * k, axis=-1, keepdims=True) * v
    since, until = decay[..., None, :], jnp.zeros_like(decay)[..., None, :]
    while (size := since.shape[-2]) < v.shape[-2]:
        _, late_q = neighbors(blocks(q, size))
        early_k, _ = neighbors(blocks(k, size))
        early_v, _ = neighbors(blocks(v, size))
        late_since, early_until = since[..., 1::2, :, :], until[..., 0::2, :, :]
        scores = keys(late_q, late_since) @ jnp.swapaxes(keys(early_k, early_until), -1, -2)
        if packed.number is not None:
            early, late = neighbors(blocks(packed.number[..., None], size))
            scores = jnp.where(late == jnp.swapaxes(early, -1, -2), scores, 0)
        read = values(scores @ values(early_v, early_until), late_since)
        early_out, late_out = neighbors(blocks(out, size))
        out = jnp.concatenate([early_out, late_out + read], axis=-2).reshape(out.shape)
        since, until = double(since, until)
    since, until = since[..., 0, :, :], until[..., 0, :, :]
    out = out + packed.continuing(values(keys(q, since) @ state, since), -2)
    update = jnp.swapaxes(keys(k, until), -1, -2) @ packed.last(values(v, until), -2)
    state = jnp.exp(jnp.expand_dims(since[..., -1, :], -1 if of_keys else -2)) * packed.carried(state) + update
    return state.reshape(state_shape), out.reshape(shape)


def pairwise(decay: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """For log decays (..., chunk): the sums over (j, i] for all j <= i, (..., chunk, chunk), and `since` and `until` of
    the whole chunk, (..., chunk).

    Entries above the diagonal of the first have no meaning.
    """
    since, until = decay[..., None, None], jnp.zeros_like(decay)[..., None, None]
    between = jnp.zeros_like(since)
    while since.shape[-3] > 1:
        early, late = neighbors(between)
        across = since[..., 1::2, :, :] + jnp.swapaxes(until[..., 0::2, :, :], -1, -2)
        upper = jnp.concatenate([early, jnp.zeros_like(early)], axis=-1)
        between = jnp.concatenate([upper, jnp.concatenate([across, late], axis=-1)], axis=-2)
        since, until = double(since, until)
    return between[..., 0, :, :], since[..., 0, :, 0], until[..., 0, :, 0]


def blocks(x: jax.Array, size: int) -> jax.Array:
    """(..., chunk, dim) to (..., blocks, size, dim)."""
    return x.reshape(*x.shape[:-2], -1, size, x.shape[-1])


def neighbors(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The early and the late block of every pair of neighbors in (..., blocks, size, dim)."""
    return x[..., 0::2, :, :], x[..., 1::2, :, :]


def double(since: jax.Array, until: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`since` and `until` of blocks of twice the size."""
    since_early, since_late = neighbors(since)
    until_early, until_late = neighbors(until)
    early_total, late_total = since_early[..., -1:, :], since_late[..., -1:, :]
    return (
        jnp.concatenate([since_early, since_late + early_total], axis=-2),
        jnp.concatenate([until_early + late_total, until_late], axis=-2),
    )
