"""Scaled dot-product attention as the equation, in float32 (float64 for float64 inputs).

    weights = softmax(scale * q k' + bias, over the keys that a query may attend),   out = weights v

(Attention Is All You Need, arXiv:1706.03762, equation 1). With ``sinks`` s, one logit per head is added to the
denominator: ``weights = exp(logits) / (exp(s) + sum exp(logits))`` (gpt-oss; arXiv:2309.17453 for the idea). With
``normalize="sigmoid"``, ``weights = sigmoid(logits)`` (arXiv:2409.04431); with "none", ``weights = logits``. With
tables r of relative keys (Shaw et al., 2018, arXiv:1803.02155, equation 4):
``logits = scale * (q k' + q r[key - query]')``.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.attention import regions, relative
from pallas_kernels.attention.call import AttentionCall, Reach
from pallas_kernels.attention.masks import Mask
from pallas_kernels.attention.scores import finite_gradient


def visible(
    query_positions: jax.Array,
    key_positions: jax.Array,
    reach: Reach,
    pattern: Mask | None,
    mask: jax.Array | None = None,
    segments: tuple[jax.Array, jax.Array] | None = None,
) -> jax.Array:
    """Which keys a query may attend to: bool, broadcastable to (batch, heads, q_length, k_length).

    Args:
      query_positions: int32 (batch or 1, q_length).
      key_positions: int32 (batch or 1, k_length); negative is an empty slot.
      reach: (left, right): keys at positions from query - left to query + right; None is unbounded.
      pattern: a function of query and key positions.
      mask: bool (batch, heads, q_length, k_length), each dimension its size or 1, or None.
      segments: ids of queries (batch or 1, q_length) and of keys (batch or 1, k_length): only keys with the query's id;
        None is no restriction.
    """
    ahead = key_positions[:, None, None, :] - query_positions[:, None, :, None]
    allowed = key_positions[:, None, None, :] >= 0
    left, right = reach
    if left is not None:
        allowed &= ahead >= -left
    if right is not None:
        allowed &= ahead <= right
    if pattern is not None:
        allowed &= pattern(query_positions[:, None, :, None], key_positions[:, None, None, :])
    if segments is not None:
        allowed &= segments[0][:, None, :, None] == segments[1][:, None, None, :]
    return allowed if mask is None else allowed & mask


def _logits(call: AttentionCall) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Logits (batch, heads, q_length, k_length), -inf where masked, the mask itself, and what was subtracted from the
    logits of a query, (batch, heads, q_length, 1)."""
    q, k = _widen(call.q), _widen(call.k)
    at_q, at_k = call.places
    allowed = visible(at_q, at_k, call.reach, call.pattern, call.mask, call.segments)
    if call.routes is not None:
        allowed &= regions.mask(call.routes, q.shape[1], k.shape[1], call.key_regions)
    allowed = jnp.broadcast_to(allowed, (q.shape[0], q.shape[2], q.shape[1], k.shape[1]))
    # 0 * NaN is NaN: keys that no query attends to, and queries that attend to nothing, may hold anything.
    q = jnp.where(jnp.swapaxes(allowed.any(3), 1, 2)[..., None], q, 0)
    k = jnp.where(jnp.swapaxes(allowed.any(2), 1, 2)[..., None], jnp.repeat(k, q.shape[2] // k.shape[2], axis=2), 0)
    logits = jnp.einsum("bqhd,bkhd->bhqk", q, k, precision="highest")
    if call.relative_keys is not None:
        r = _widen(call.relative_keys)
        r = jnp.broadcast_to(r, (q.shape[2], *r.shape[1:]))
        products = jnp.einsum(
            "bqhd,hsd->bhqs", q if call.relative_query is None else _queries(call, allowed), r, precision="highest"
        )
        at = relative.index(r, relative.origin(r, call.relative_origin), at_q, at_k)
        logits = logits + jnp.take_along_axis(products, jnp.broadcast_to(at[:, None], logits.shape), 3)
    logits = call.scale * logits
    if call.score is not None:
        heads = jnp.arange(q.shape[2], dtype=jnp.int32)[None, :, None, None]
        rows = (
            ()
            if call.rows is None
            else [jnp.swapaxes(row, 1, 2)[..., None] for row in jnp.moveaxis(_widen(call.rows), 3, 0)]
        )
        logits = finite_gradient(call.score)(
            logits, heads, at_q[:, None, :, None], at_k[:, None, None, :], *rows
        ).astype(logits.dtype)
    shift = jnp.zeros((*logits.shape[:3], 1), logits.dtype)
    if call.bias is not None:
        bias = _widen(call.bias)
        if call.bias_rest is not None:
            # Keys of large weight then have a small bias, which keeps the digits of the rest.
            shift = largest(jnp.broadcast_to(bias, logits.shape), allowed)
            bias = (bias - shift) + _widen(call.bias_rest)
        logits = logits + bias
    if call.relative_bias is not None:
        logits = logits + _by_offset(call, call.relative_bias)
    return jnp.where(allowed, logits, 0.0 if call.normalize == "none" else -jnp.inf), allowed, shift


def largest(x: jax.Array, allowed: jax.Array | None = None) -> jax.Array:
    """The maximum of ``x`` over the last axis where it is ``allowed``, without a gradient; 0 where nothing is."""
    top = jnp.max(x if allowed is None else jnp.where(allowed, x, -jnp.inf), axis=-1, keepdims=True)
    return jax.lax.stop_gradient(jnp.where(top == -jnp.inf, 0.0, top))


def _queries(call: AttentionCall, allowed: jax.Array) -> jax.Array:
    return jnp.where(jnp.swapaxes(allowed.any(3), 1, 2)[..., None], _widen(call.relative_query), 0)


def _by_offset(call: AttentionCall, table: jax.Array) -> jax.Array:
    """Entries of a table (heads or 1, span): (batch or 1, heads or 1, q_length, k_length)."""
    at = relative.index(table, relative.origin(table, call.relative_origin), *call.places)
    return jnp.moveaxis(_widen(table)[:, at], 0, 1)


def _normalize(logits: jax.Array, sinks: jax.Array | None, normalize: str) -> tuple[jax.Array, jax.Array]:
    """Weights, and the log-sum-exp (batch, q_length, heads) of logits and sinks (batch, heads, q_length, 1)."""
    if normalize != "softmax":
        return jax.nn.sigmoid(logits) if normalize == "sigmoid" else logits, jnp.zeros(())
    if sinks is not None:
        logits = jnp.concatenate([logits, sinks], axis=3)
    top = jax.lax.stop_gradient(jnp.max(logits, axis=3, keepdims=True))
    unnormalized = jnp.exp(logits - jnp.where(top == -jnp.inf, 0.0, top))
    total = jnp.sum(unnormalized, axis=3, keepdims=True)
    empty = total == 0
    total = jnp.where(empty, 1.0, total)
    weights = unnormalized / total
    lse = jnp.where(empty, -jnp.inf, jnp.log(total) + top)
    return weights if sinks is None else weights[..., :-1], jnp.swapaxes(lse[..., 0], 1, 2)


def _widen(x: Any) -> Any:
    return None if x is None else x.astype(jnp.promote_types(x.dtype, jnp.float32))


def attention_weights(call: AttentionCall) -> jax.Array:
    """The weights (batch, heads, q_length, k_length), float32 or float64."""
    return _weights(call)[0]


def _weights(call: AttentionCall) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Weights, the log-sum-exp, and the mask."""
    logits, allowed, shift = _logits(call)
    sinks = None if call.sinks is None else _widen(call.sinks)[:, None, None] - shift
    weights, lse = _normalize(logits, sinks, call.normalize)
    lse = lse + jnp.swapaxes(shift[..., 0], 1, 2)
    if call.relative_weight is not None:
        weights = weights * _by_offset(call, call.relative_weight)
    return weights, lse, allowed


def attention(call: AttentionCall) -> tuple[jax.Array, jax.Array]:
    """The op."""
    weights, lse, allowed = _weights(call)
    values = jnp.repeat(_widen(call.v), call.q.shape[2] // call.v.shape[2], axis=2)
    values = jnp.where(jnp.swapaxes(allowed.any(2), 1, 2)[..., None], values, 0)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, values, precision="highest").astype(call.q.dtype), lse
