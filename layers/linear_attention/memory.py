"""Reads and writes of matrix memories, including memories with exponential weights.

A memory S is a decaying sum of outer products of keys and values, S_t = exp(g_t) S_{t-1} + w_t k_t v_t^T. Weights w_t =
exp(s_t) can overflow; stored relative to the largest so far they cannot:

    m_t = max(f_t + m_{t-1}, s_t)        w_t = exp(s_t - m_t)        g_t = f_t + m_{t-1} - m_t

which multiplies the memory by exp(-m_t). In outputs that are a quotient of two sums of the memory, m cancels, and so
does its gradient.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from layers.recurrent import RecurrentState
from layers.tokens import Tokens
from pallas_kernels import linear_attention


def per_head(features: float, num_heads: int) -> int:
    """Features of one head.

    Raises:
      ValueError: ``num_heads`` does not divide ``features``.
    """
    features = round(features, 6)  # features times an expansion factor may have rounding errors
    if features % num_heads:
        raise ValueError(
            f"{features:g} features can't be split over {num_heads} heads: choose a number of heads that divides them"
        )
    return int(features) // num_heads


def remember(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    decay: jax.Array,
    tokens: Tokens,
    state: RecurrentState | None,
    scale: float | None = None,
    bonus: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """:func:`pallas_kernels.linear_attention` continued from ``state``.

    Args:
      q, k: (batch, length, heads, key_dim).
      v: (batch, length, heads, value_dim).
      decay: log decay, (batch, length, heads), (batch, length, heads, key_dim) or (heads,).
      tokens: their mask and documents.
      state: the state after the previous tokens; None if there are none.
      scale: factor of q . k; default key_dim ** -0.5.
      bonus: (heads, key_dim); if given, a token reads the memory before its own update, and itself with these weights.

    Returns:
      The output (batch, length, heads, value_dim), and the new memory, which padding leaves unchanged if there is a
      state.
    """
    if state is not None and tokens.mask is not None:
        real = tokens.mask[..., None]
        k = jnp.where(real[..., None], k, 0)
        decay = jnp.where(real[..., None] if decay.ndim == 4 else real, decay, 0)
    before, segment = (None, None) if state is None else (state.memory, state.segment)
    starts = tokens.starts(segment)
    read: dict[str, Any] = {"exclusive": bonus is not None, "bonus": bonus, "scale": scale}
    y, memory = linear_attention(q, k, v, decay=decay, **read, initial_state=before, starts=starts, return_state=True)
    return y, memory


@struct.dataclass
class WeightedState(RecurrentState):
    """The state of a memory with exponential weights.

    Attributes:
      largest: (batch, heads), m: the memory is stored times exp(-m).
    """

    largest: jax.Array


def exponential_weights(
    logits: jax.Array, forget: jax.Array | None, opening: float, tokens: Tokens, state: WeightedState | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Weights and decays relative to the running maximum, for logits s and log decays f.

    Args:
      logits: (batch, length, heads), s, float32; any more axes are as those of heads.
      forget: the same shape, f <= 0; None for 0.
      opening: m before the first token of a document.
      tokens: their mask and documents.
      state: the state after the previous tokens; None if there are none.

    Returns:
      w and g (batch, length, heads), with w = 0 in padding, and m (batch, length, heads), which has no gradient.
    """
    forget = jnp.zeros_like(logits) if forget is None else forget
    s, f = jax.lax.stop_gradient((logits, forget))
    more = tuple(range(2, logits.ndim))
    if tokens.mask is not None:
        real = jnp.expand_dims(tokens.mask, more)
        s, f = jnp.where(real, s, -jnp.inf), jnp.where(real, f, 0)
    last = jnp.full_like(s[:, 0], opening) if state is None else state.largest.astype(s.dtype)
    starts = tokens.starts(None if state is None else state.segment)
    first = jnp.zeros(s.shape[:2], bool) if starts is None else starts
    first = jnp.expand_dims(first.at[:, 0].set(True), more)
    entering = last[:, None] if starts is None else jnp.where(jnp.expand_dims(starts, more), opening, last[:, None])
    # At the first token of a document, and of the call, m so far enters as one more logit.
    reach = (jnp.where(first, -jnp.inf, f), jnp.where(first, jnp.maximum(s, f + entering), s))
    m = jax.lax.associative_scan(lambda a, b: (a[0] + b[0], jnp.maximum(a[1] + b[0], b[1])), reach, axis=1)[1]
    before = jnp.where(first, entering, jnp.concatenate([last[:, None], m[:, :-1]], axis=1))
    # With an opening of -inf, m is -inf before the first token, when the memory is empty.
    rise = jnp.where(jnp.isneginf(before), 0, before - m)
    decay = forget + rise
    decay = decay - jax.lax.stop_gradient(jnp.maximum(decay, 0))  # rounding may make it positive
    relative = logits - m
    if tokens.mask is not None:
        relative = jnp.where(real, relative, 0)
    weight = jnp.exp(relative)
    return weight if tokens.mask is None else jnp.where(real, weight, 0), decay, m


def with_ones(v: jax.Array) -> jax.Array:
    """``v`` (..., value_dim) with a column of ones appended, whose memory is the sum of weights."""
    return jnp.concatenate([v, jnp.ones_like(v[..., :1])], axis=-1)


def sums(y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Splits the output of a memory of :func:`with_ones` into sums of values (..., value_dim) and of weights (..., 1),
    at least float32.
    """
    wide: Any = y.astype(jnp.promote_types(y.dtype, jnp.float32))
    return wide[..., :-1], wide[..., -1:]
