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
from pallas_kernels.attention.masks import Mask, Score

Window = tuple[int | None, int | None] | None


def visible(
    query_positions: jax.Array, key_positions: jax.Array, mask: jax.Array | None, causal: bool, window: Window, pattern: Mask | None
) -> jax.Array:
    """Which keys a query may attend: bool, broadcastable to (batch, heads, q_length, k_length).

    Args:
      query_positions: int32 (batch or 1, q_length).
      key_positions: int32 (batch or 1, k_length); negative is an empty slot.
      mask: bool (batch, heads, q_length, k_length), each dimension its size or 1, or None.
      causal: keys at positions up to the query's.
      window: (left, right): keys at positions in [query - left, query + right]; None is unbounded.
      pattern: a function of query and key positions.
    """
    ahead = key_positions[:, None, None, :] - query_positions[:, None, :, None]
    allowed = key_positions[:, None, None, :] >= 0
    if causal:
        allowed &= ahead <= 0
    left, right = window or (None, None)
    if left is not None:
        allowed &= ahead >= -left
    if right is not None:
        allowed &= ahead <= right
    if pattern is not None:
        allowed &= pattern(query_positions[:, None, :, None], key_positions[:, None, None, :])
    return allowed if mask is None else allowed & mask


def _logits(
    q: jax.Array,
    k: jax.Array,
    *,
    bias: jax.Array | None,
    mask: jax.Array | None,
    pattern: Mask | None,
    score: Score | None,
    causal: bool,
    window: Window,
    scale: float,
    query_positions: jax.Array | None,
    key_positions: jax.Array | None,
    routes: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
    """Logits (batch, heads, q_length, k_length), -inf where masked, and the mask itself."""
    if query_positions is None:
        query_positions = jnp.arange(q.shape[1], dtype=jnp.int32)[None]
    if key_positions is None:
        key_positions = jnp.arange(k.shape[1], dtype=jnp.int32)[None]
    allowed = visible(query_positions, key_positions, mask, causal, window, pattern)
    if routes is not None:
        allowed &= regions.mask(routes, q.shape[1], k.shape[1])
    allowed = jnp.broadcast_to(allowed, (q.shape[0], q.shape[2], q.shape[1], k.shape[1]))
    # 0 * NaN is NaN: what nobody attends, and who attends nothing, may hold anything.
    q = jnp.where(jnp.swapaxes(allowed.any(3), 1, 2)[..., None], q, 0)
    k = jnp.where(jnp.swapaxes(allowed.any(2), 1, 2)[..., None], jnp.repeat(k, q.shape[2] // k.shape[2], axis=2), 0)
    logits = scale * jnp.einsum("bqhd,bkhd->bhqk", q, k, precision="highest")
    if score is not None:
        heads = jnp.arange(q.shape[2], dtype=jnp.int32)[None, :, None, None]
        logits = score(logits, heads, query_positions[:, None, :, None], key_positions[:, None, None, :]).astype(logits.dtype)
    if bias is not None:
        logits = logits + bias
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


def attention_weights(q: jax.Array, k: jax.Array, *, bias: Any, sinks: Any, normalize: str, **where: Any) -> jax.Array:
    """The weights (batch, heads, q_length, k_length), float32 or float64."""
    logits, _ = _logits(_widen(q), _widen(k), bias=_widen(bias), **where)
    return _normalise(logits, _widen(sinks), normalize)[0]


def attention(
    q: jax.Array, k: jax.Array, v: jax.Array, *, bias: Any, sinks: Any, normalize: str, return_lse: bool, **where: Any
) -> Any:
    """The op; arguments as in :func:`pallas_kernels.attention.attention`, after its checks."""
    logits, allowed = _logits(_widen(q), _widen(k), bias=_widen(bias), **where)
    weights, lse = _normalise(logits, _widen(sinks), normalize)
    values = jnp.repeat(_widen(v), q.shape[2] // v.shape[2], axis=2)
    values = jnp.where(jnp.swapaxes(allowed.any(2), 1, 2)[..., None], values, 0)
    out = jnp.einsum("bhqk,bkhd->bqhd", weights, values, precision="highest").astype(q.dtype)
    return (out, lse) if return_lse else out
