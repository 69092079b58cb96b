"""Normalized attention: Normalized Attention Without Probability Cage (Richter and Wattenhofer, 2020,
arXiv:2005.09561), section 4.

    w_ij = g (s_ij - m_i) / (sd_i + 1e-3) + b        s_ij = q_i . k_j / sqrt(d)        y_i = sum_j w_ij v_j

with the mean m_i and the standard deviation sd_i of the logits of a query, and learned g and b per head. The weights
may be negative. The paper computes all logits, which is not needed: with c the number of visible keys and sums over
them,

    c m_i = q_i . sum k_j        c (sd_i^2 + m_i^2) = q_i (sum k_j k_j^T) q_i
    y_i = [g q_i / sd, b - g m / sd] . sum [k_j, 1] v_j^T

so it is two linear attentions with a state of fixed size. The first key of the document is subtracted from all keys;
this changes no weight and avoids cancellation in the sums if keys are nearly equal.

The state holds squares of keys. If one is far longer than the others, a query at the angle a to it has an error of
about 1e-7 / cos(a)^2 once the key is part of the state, against 1e-7 / cos(a) within a chunk of the op, whose products
are those of queries and keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Unpack

import jax
import jax.numpy as jnp

from layers.attention.projected import RotaryHeadOptions
from layers.attention.summed import Reading, SummedAttention
from layers.broadcast import widened
from layers.initializers import constant
from layers.mixer import register_mixer, without_padding
from layers.module import parameter

EPSILON = 1e-3


@register_mixer("normalized_attention")
class NormalizedAttention(SummedAttention):
    """Attention whose weights are the logits, standardized per query, without a softmax.

    Parameters: ``query``, ``key``, ``value``, ``out`` (linear), ``gain`` and ``shift`` (heads,), g and b, and
    ``query_norm``, ``key_norm`` if enabled.
    """

    paper = (169,)
    undecayed = ("gain", "shift")

    def __init__(
        self, features: int, *, causal: bool = False, shift: float = 0.0, **options: Unpack[RotaryHeadOptions]
    ):
        """Args:
        shift: initial value of b. With 0, as in the paper, the weights of a query initially sum to 0.
        options: as in :class:`ProjectedAttention`.
        """
        super().__init__(features, causal=causal, **options)
        self.gain, self.shift = (parameter(constant(value), (self.num_heads,), options) for value in (1.0, shift))

    def sum_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Sums of u u^T and of u v^T with u = [k, 1]; and the key that is subtracted from all."""
        heads, width = self.num_heads, self.head_dim
        return {"keys": (heads, width + 1, width + 1), "values": (heads, width + 1, width), "first": (heads, width)}

    def attend(self, q: jax.Array, k: jax.Array, v: jax.Array, reading: Reading) -> jax.Array:
        count, mask = reading.count(), reading.tokens.mask
        if reading.before is None:
            first = _first(k, reading.starts)
        else:
            before = reading.before["first"]
            given = jnp.where((count[:, 0] == 1)[:, None, None], k[:, 0].astype(before.dtype), before)
            first = jnp.broadcast_to(_first(k.astype(before.dtype), reading.starts, given), k.shape)
            real = jnp.full_like(count[:, 0], k.shape[1]) if mask is None else mask.sum(1, dtype=jnp.int32)
            last = jnp.take_along_axis(first, jnp.maximum(real - 1, 0)[:, None, None, None], axis=1)[:, 0]
            reading.after["first"] = jnp.where((real > 0)[:, None, None], last, before)
        wide = jnp.promote_types(v.dtype, jnp.float32)
        q = q.astype(wide) * self.head_dim**-0.5
        one = jnp.ones_like(q[..., :1])
        keys = without_padding(jnp.concatenate([(k - first).astype(wide), one], -1), reading.heads_mask())
        products = reading.sum("keys", jnp.concatenate([q, 0 * one], -1), keys, keys)
        seen = count.astype(wide)[..., None]
        mean = products[..., -1] / seen
        variance = jnp.sum(products[..., :-1] * q, -1) / seen - mean**2
        # Equal logits have variance 0, where the square root has no gradient.
        spread = variance > 0
        deviation = jnp.where(spread, jnp.sqrt(jnp.where(spread, variance, 1)), 0) + EPSILON
        gain, shift = widened(self.gain[...]) / deviation, widened(self.shift[...])
        asks = jnp.concatenate([q * gain[..., None], (shift - gain * mean)[..., None]], -1)
        return reading.sum("values", asks, keys, v.astype(wide)).astype(v.dtype)


def _first(k: jax.Array, begins: jax.Array | None, before: jax.Array | None = None) -> jax.Array:
    """The first key of each token's document, with the shape of ``k`` (batch, length, heads, head_dim) or length 1;
    ``before`` is that of the document being continued, (batch, heads, head_dim).
    """
    given = k[:, :1] if before is None else before[:, None]
    if begins is None:
        return given
    at = jax.lax.cummax(jnp.where(begins, jnp.arange(k.shape[1]), -1), axis=1)[..., None, None]
    return jnp.where(at < 0, given, jnp.take_along_axis(k, jnp.maximum(at, 0), axis=1))
