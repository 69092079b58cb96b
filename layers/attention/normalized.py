"""Normalized attention: Normalized Attention Without Probability Cage (Richter and Wattenhofer, 2020,
arXiv:2005.09561), section 4.

    w_ij = g (s_ij - m_i) / (sd_i + 1e-3) + b        s_ij = q_i . k_j / sqrt(d)        y_i = sum_j w_ij v_j

with the mean m_i and the standard deviation sd_i of the scores of a query, and g and b of each head. The weights may be
negative. The paper computes all scores. None is needed: with sums over the keys seen,

    c m_i = q_i . sum k_j        c (sd_i^2 + m_i^2) = q_i (sum k_j k_j^T) q_i
    y_i = [g q_i / sd, b - g m / sd] . sum [k_j, 1] v_j^T

so that it is linear attention twice, and a state of fixed size is all that is kept of the past. Keys are taken less the
first of their document, which changes no weight: keys that are alike would lose their differences in the sums.
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
    """Attention whose weights are its scores, normalized to a mean and a standard deviation.

    Parameters: ``query``, ``key``, ``value``, ``out`` (linear), ``query_norm``, ``key_norm`` where asked for, and
    ``gain`` and ``shift`` (heads,).
    """

    paper = (169,)
    undecayed = ("gain", "shift")

    def __init__(
        self, features: int, *, causal: bool = False, shift: float = 0.0, **options: Unpack[RotaryHeadOptions]
    ):
        """Args:
        shift: initial value of b. With 0, the paper's, the weights of a query sum to 0 at first.
        options: as of :class:`ProjectedAttention`.
        """
        super().__init__(features, causal=causal, **options)
        self.gain, self.shift = (parameter(constant(value), (self.num_heads,), options) for value in (1.0, shift))

    def sum_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Of u u^T, and of u v^T, u being k and a 1; and the key that is taken from all."""
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
        # Of equal scores it is 0, where the root has no slope.
        spread = variance > 0
        deviation = jnp.where(spread, jnp.sqrt(jnp.where(spread, variance, 1)), 0) + EPSILON
        gain, shift = widened(self.gain[...]) / deviation, widened(self.shift[...])
        asks = jnp.concatenate([q * gain[..., None], (shift - gain * mean)[..., None]], -1)
        return reading.sum("values", asks, keys, v.astype(wide)).astype(v.dtype)


def _first(k: jax.Array, begins: jax.Array | None, before: jax.Array | None = None) -> jax.Array:
    """The first key of each token's document, of the shape of ``k`` (batch, length, heads, head_dim) or with a length
    of 1; ``before`` is that of the document that goes on, (batch, heads, head_dim).
    """
    given = k[:, :1] if before is None else before[:, None]
    if begins is None:
        return given
    at = jax.lax.cummax(jnp.where(begins, jnp.arange(k.shape[1]), -1), axis=1)[..., None, None]
    return jnp.where(at < 0, given, jnp.take_along_axis(k, jnp.maximum(at, 0), axis=1))
