"""Normalized attention: Normalized Attention Without Probability Cage (Richter and Wattenhofer, 2020, arXiv:2005.09561),
section 4.

    w_ij = g (s_ij - m_i) / (sd_i + 1e-3) + b        s_ij = q_i . k_j / sqrt(d)        y_i = sum_j w_ij v_j

with the mean m_i and the standard deviation sd_i of the scores of a query, and g and b of each head. The weights may be
negative. The paper computes all scores. None is needed: with sums over the keys seen,

    c m_i = q_i . sum k_j        c (sd_i^2 + m_i^2) = q_i (sum k_j k_j^T) q_i        y_i = [g q_i / sd, b - g m / sd] . sum [k_j, 1] v_j^T

so that it is linear attention twice, and a state of fixed size is all that is kept of the past. Keys are taken less the
first of their document, which changes no weight: keys that are alike would lose their differences in the sums.
"""

from __future__ import annotations

from typing import Any, Unpack

import jax
import jax.numpy as jnp
from flax import struct

from layers.attention.projected import ProjectedAttention, RotaryHeadOptions
from layers.broadcast import widened
from layers.initializers import constant
from layers.mixer import register_mixer, without_padding
from layers.module import parameter
from layers.tokens import Continuation, Tokens
from pallas_kernels import linear_attention

EPSILON = 1e-3


@struct.dataclass
class NormalizedAttentionState:
    """What is kept of a row's current document, at least float32.

    Attributes:
      keys: (batch, heads, head_dim + 1, head_dim + 1), the sum of [k, 1] [k, 1]^T.
      values: (batch, heads, head_dim + 1, head_dim), the sum of [k, 1] v^T.
      first: (batch, heads, head_dim), the key that is taken from all.
      length: (batch,) int32, tokens read of the document.
      segment: (batch,) int32, that document.
    """

    keys: jax.Array
    values: jax.Array
    first: jax.Array
    length: jax.Array
    segment: jax.Array


@register_mixer("normalized_attention")
class NormalizedAttention(ProjectedAttention):
    """Attention whose weights are its scores, normalized to a mean and a standard deviation.

    Parameters: ``query``, ``key``, ``value``, ``out`` (linear), ``query_norm``, ``key_norm`` where asked for, and
    ``gain`` and ``shift`` (heads,).
    """

    supports_causal = True
    weighs_values = True
    paper = (169,)
    undecayed = ("gain", "shift")

    def __init__(
        self,
        features: int,
        *,
        causal: bool = False,
        shift: float = 0.0,
        **options: Unpack[RotaryHeadOptions],
    ):
        """Args:
        shift: initial value of b. With 0, the paper's, the weights of a query sum to 0 at first.
        options: as of :class:`ProjectedAttention`.
        """
        super().__init__(features, **options)
        self.gain, self.shift = (parameter(constant(value), (self.num_heads,), options) for value in (1.0, shift))
        self.causal = causal

    @property
    def complexity(self) -> float:
        return 1.0

    @property
    def honors(self) -> frozenset[str]:  # type: ignore[override]
        return frozenset({"mask", "segment_ids"} | (set() if self.rotary is None else {"positions"}))

    def core(self, q: jax.Array, k: jax.Array, v: jax.Array, x: jax.Array, tokens: Tokens) -> jax.Array:
        begins, seen = tokens.starts(), tokens.count(k.shape[1], causal=self.causal)
        return self._weigh(q, k - _first(k, begins), v, seen, tokens, starts=begins, causal=self.causal)[0]

    def init_state(
        self, batch_size: int, max_length: int | None = None, dtype: Any = jnp.float32
    ) -> NormalizedAttentionState:
        """An empty state; its size does not depend on the length, and it is never narrower than float32."""
        if not self.causal:
            return super().init_state(batch_size, max_length, dtype)
        heads, width, wide = (batch_size, self.num_heads), self.head_dim, jnp.promote_types(dtype, jnp.float32)
        length, segment = jnp.zeros((batch_size,), jnp.int32), jnp.zeros((batch_size,), jnp.int32)
        keys, values, first = (
            jnp.zeros((*heads, *shape), wide) for shape in ((width + 1, width + 1), (width + 1, width), (width,))
        )
        return NormalizedAttentionState(keys, values, first, length, segment)

    def core_next(
        self, q: jax.Array, k: jax.Array, v: jax.Array, x: jax.Array, tokens: Tokens, state: Any, after: Continuation
    ) -> tuple[jax.Array, Any]:
        before = jnp.where((state.length == 0)[:, None, None], k[:, 0].astype(state.first.dtype), state.first)
        begins = tokens.starts(state.segment)
        first = _first(k.astype(before.dtype), begins, before)
        memory = state.keys, state.values
        y, (keys, values) = self._weigh(q, k - first, v, after.positions + 1, tokens, memory, starts=begins)
        first = jnp.broadcast_to(first, k.shape)
        count = jnp.full_like(state.length, k.shape[1]) if tokens.mask is None else tokens.mask.sum(1, dtype=jnp.int32)
        last = jnp.take_along_axis(first, jnp.maximum(count - 1, 0)[:, None, None, None], axis=1)[:, 0]
        kept = jnp.where((count > 0)[:, None, None], last, state.first)
        return y, NormalizedAttentionState(keys, values, kept, after.length, after.segment)

    def _weigh(
        self,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        seen: jax.Array,
        tokens: Tokens,
        memory: tuple[jax.Array, jax.Array] | None = None,
        **options: Any,
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """What heads find, and the sums after the tokens where those before are given.

        Args:
          seen: how many keys each query sees, (batch or 1, queries).
          memory: the sums of the tokens before, of keys and of values.
          **options: of the op.
        """

        def sums(q: jax.Array, values: jax.Array, before: jax.Array | None) -> tuple[jax.Array, Any]:
            if before is None:
                return linear_attention(q, keys, values, scale=1.0, **options), None
            found, after = linear_attention(
                q, keys, values, scale=1.0, initial_state=before, return_state=True, **options
            )
            return found, after.astype(before.dtype)

        wide = jnp.promote_types(v.dtype, jnp.float32)
        q = q.astype(wide) * self.head_dim**-0.5
        one = jnp.ones_like(q[..., :1])
        heads = None if tokens.mask is None else tokens.mask[..., None]
        keys = without_padding(jnp.concatenate([k.astype(wide), one], -1), heads)
        of_keys, of_values = memory or (None, None)
        products, after_keys = sums(jnp.concatenate([q, 0 * one], -1), keys, of_keys)
        count = seen.astype(wide)[..., None]
        mean = products[..., -1] / count
        variance = jnp.sum(products[..., :-1] * q, -1) / count - mean**2
        # Of equal scores it is 0, where the root has no slope.
        spread = variance > 0
        deviation = jnp.where(spread, jnp.sqrt(jnp.where(spread, variance, 1)), 0) + EPSILON
        gain, shift = widened(self.gain[...]) / deviation, widened(self.shift[...])
        asks = jnp.concatenate([q * gain[..., None], (shift - gain * mean)[..., None]], -1)
        y, after_values = sums(asks, v.astype(wide), of_values)
        return y.astype(v.dtype), (after_keys, after_values)


def _first(k: jax.Array, begins: jax.Array | None, before: jax.Array | None = None) -> jax.Array:
    """The first key of each token's document, of the shape of ``k`` (batch, length, heads, head_dim) or with a length of
    1; ``before`` is that of the document that goes on, (batch, heads, head_dim).
    """
    given = k[:, :1] if before is None else before[:, None]
    if begins is None:
        return given
    at = jax.lax.cummax(jnp.where(begins, jnp.arange(k.shape[1]), -1), axis=1)[..., None, None]
    return jnp.where(at < 0, given, jnp.take_along_axis(k, jnp.maximum(at, 0), axis=1))
