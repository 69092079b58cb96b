"""Scaled dot-product attention as the equation, in float32 (float64 for float64 inputs).

    weights = softmax(scale * q k' + bias, over the keys that a query may attend),   out = weights v

(Attention Is All You Need, arXiv:1706.03762, equation 1). With ``sinks`` s, one logit a head joins the
denominator: ``weights = exp(logits) / (exp(s) + sum exp(logits))`` (gpt-oss; arXiv:2309.17453 for the
idea). With ``normalize="sigmoid"``, ``weights = sigmoid(logits)`` (arXiv:2409.04431).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.attention import regions
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
    """Which keys a query may attend: bool, broadcastable to (batch, heads, q_length, k_length).

    Args:
      query_positions: int32 (batch or 1, q_length).
      key_positions: int32 (batch or 1, k_length); negative is an empty slot.
      reach: keys at positions in [query + left, query + right].
      pattern: a function of query and key positions.
      mask: bool (batch, heads, q_length, k_length), each dimension its size or 1, or None.
      segments: ids of queries (batch or 1, q_length) and of keys (batch or 1, k_length): only keys of the query's own;
        None is no limit.
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


def _logits(call: AttentionCall) -> tuple[jax.Array, jax.Array]:
    """Logits (batch, heads, q_length, k_length), -inf where masked, and the mask itself."""
    q, k = _widen(call.q), _widen(call.k)
    at_q, at_k = call.places
    allowed = visible(at_q, at_k, call.reach, call.pattern, call.mask, call.segments)
    if call.routes is not None:
        allowed &= regions.mask(call.routes, q.shape[1], k.shape[1])
    allowed = jnp.broadcast_to(allowed, (q.shape[0], q.shape[2], q.shape[1], k.shape[1]))
    # 0 * NaN is NaN: keys that are never attended, and queries that attend to nothing, may hold anything.
    q = jnp.where(jnp.swapaxes(allowed.any(3), 1, 2)[..., None], q, 0)
    k = jnp.where(jnp.swapaxes(allowed.any(2), 1, 2)[..., None], jnp.repeat(k, q.shape[2] // k.shape[2], axis=2), 0)
    logits = call.scale * jnp.einsum("bqhd,bkhd->bhqk", q, k, precision="highest")
    if call.score is not None:
        heads = jnp.arange(q.shape[2], dtype=jnp.int32)[None, :, None, None]
        logits = finite_gradient(call.score)(logits, heads, at_q[:, None, :, None], at_k[:, None, None, :]).astype(logits.dtype)
    if call.bias is not None:
        logits = logits + _widen(call.bias)
    return jnp.where(allowed, logits, -jnp.inf), allowed


def _normalise(logits: jax.Array, sinks: jax.Array | None, normalize: str) -> tuple[jax.Array, jax.Array]:
    """Weights, and the log-sum-exp (batch, q_length, heads) of logits and sink."""
    if normalize == "sigmoid":
        return jax.nn.sigmoid(logits), jnp.zeros(())
    if sinks is not None:
        logits = jnp.concatenate([logits, jnp.broadcast_to(sinks[:, None, None], (*logits.shape[:3], 1))], axis=3)
    top = jax.lax.stop_gradient(jnp.max(logits, axis=3, keepdims=True))
    unnormalised = jnp.exp(logits - jnp.where(top == -jnp.inf, 0.0, top))
    total = jnp.sum(unnormalised, axis=3, keepdims=True)
    empty = total == 0
    total = jnp.where(empty, 1.0, total)
    weights = unnormalised / total
    lse = jnp.where(empty, -jnp.inf, jnp.log(total) + top)
    return weights if sinks is None else weights[..., :-1], jnp.swapaxes(lse[..., 0], 1, 2)


def _widen(x: Any) -> Any:
    return None if x is None else x.astype(jnp.promote_types(x.dtype, jnp.float32))


def attention_weights(call: AttentionCall) -> jax.Array:
    """The weights (batch, heads, q_length, k_length), float32 or float64."""
    return _normalise(_logits(call)[0], _widen(call.sinks), call.normalize)[0]


def attention(call: AttentionCall) -> tuple[jax.Array, jax.Array]:
    """The op."""
    logits, allowed = _logits(call)
    weights, lse = _normalise(logits, _widen(call.sinks), call.normalize)
    values = jnp.repeat(_widen(call.v), call.q.shape[2] // call.v.shape[2], axis=2)
    values = jnp.where(jnp.swapaxes(allowed.any(2), 1, 2)[..., None], values, 0)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, values, precision="highest").astype(call.q.dtype), lse
