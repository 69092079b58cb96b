"""Longformer's attention: Longformer: The Long-Document Transformer (I. Beltagy et al., 2020, arXiv:2004.05150),
section 3.1.

With G the global tokens and w the window,

    y_i = softmax(q_i k_j / sqrt(d)) v_j  over j in G and |i - j| <= w / 2         i not in G
    y_i = softmax(q'_i k'_j / sqrt(d)) v'_j  over all j                            i in G

where q', k', v' are separate projections. A global token inside the window counts only once. The cost is linear in the
length: a band, a few keys for all queries, and a few queries for all keys; the first two share one softmax.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Unpack

import jax
import jax.numpy as jnp

from layers.attention.projected import HeadOptions, ProjectedAttention, of_projections
from layers.linear import Linear
from layers.mixer import Mixer, register_mixer
from layers.module import Diagnostic
from layers.tokens import Tokens
from pallas_kernels import attention, attention_weights, merge

GLOBAL = 1
"""The role of a global token, in ``tokens.roles``."""


@register_mixer("longformer_attention")
class LongformerAttention(ProjectedAttention):
    """Sliding-window attention, plus attention to and from global tokens, those with role 1.

    Without roles no token is global. A row may have up to ``max_global`` of them. A row with more raises an error
    outside ``jit``; under ``jit``, where roles are not known, its output is NaN.

    Parameters: ``query``, ``key``, ``value``, ``global_query``, ``global_key``, ``global_value``, ``out`` (linear).
    """

    honors = frozenset({"mask", "segment_ids", "roles"})
    refusals: ClassVar[Mapping[str, str]] = {
        "positions": "its window counts places in the sequence: leave positions out"
    }
    sharding: ClassVar[Mapping[str, tuple[str | None, ...]]] = {
        **Mixer.sharding,
        **dict.fromkeys(("global_query.kernel", "global_key.kernel", "global_value.kernel"), (None, "tensor")),
    }
    paper = (126,)

    def __init__(
        self,
        features: int,
        *,
        head_dim: int | None = None,
        window: int = 512,
        max_global: int = 64,
        **options: Unpack[HeadOptions],
    ):
        """Args:
          head_dim, options: as in :class:`ProjectedAttention`.
          window: w; a token sees w // 2 tokens on each side, and itself.
          max_global: maximum number of global tokens in a row. Time and memory grow with it, regardless of the actual
            number.

        Raises:
          ValueError: features not divisible by num_heads, a negative window, or ``max_global`` below 1.
        """
        if window < 0 or max_global < 1:
            raise ValueError(f"the window must be at least 0 and max_global at least 1; got {window} and {max_global}")
        super().__init__(features, head_dim=head_dim, **options)
        inner, common = self.num_heads * self.head_dim, of_projections(options)
        common["use_bias"] = options.get("use_bias", True)
        self.global_query = Linear(features, inner, **common)
        self.global_key = Linear(features, inner, **common)
        self.global_value = Linear(features, inner, **common)
        self.reach, self.max_global = window // 2, max_global

    @property
    def complexity(self) -> float:
        return 1.0

    def core(self, q: jax.Array, k: jax.Array, v: jax.Array, x: jax.Array, tokens: Tokens) -> jax.Array:
        """As :meth:`ProjectedAttention.core`.

        Raises:
          ValueError: a row has more than ``max_global`` global tokens (outside ``jit``, where roles are known).
        """
        mask, ids = tokens.mask, tokens.segment_ids
        band: dict[str, Any] = {"window": (self.reach, self.reach), "query_segments": ids, "key_segments": ids}
        if self.sowing(Diagnostic, "attention"):
            self.sow(Diagnostic, "attention", self._weights(x, q, k, tokens))
        if tokens.roles is None:
            return attention(q, k, v, mask=_of_keys(mask), **band)

        real = jnp.ones(x.shape[:2], bool) if mask is None else mask
        marked = (tokens.roles == GLOBAL) & real
        slots = min(self.max_global, x.shape[1])
        fits = self._fits(marked, slots)
        order = jnp.argsort(~marked, axis=1, stable=True)[:, :slots]  # positions of global tokens, then of others

        def gather(a: jax.Array) -> jax.Array:
            return jnp.take_along_axis(a, order.reshape(order.shape + (1,) * (a.ndim - 2)), axis=1)

        there = gather(marked)
        few = None if ids is None else gather(jnp.broadcast_to(ids, real.shape))
        near = attention(q, k, v, mask=_of_keys(real & ~marked), **band, return_lse=True)
        far = attention(
            q, gather(k), gather(v), mask=_of_keys(there), query_segments=ids, key_segments=few, return_lse=True
        )
        global_q = self.global_query(gather(x)).reshape(*order.shape, *q.shape[2:])
        global_k, global_v = self.global_key(x).reshape(k.shape), self.global_value(x).reshape(v.shape)
        of_global = attention(global_q, global_k, global_v, mask=_of_keys(real), query_segments=few, key_segments=ids)
        rows = jnp.arange(x.shape[0])[:, None]
        y = merge([near, far])[0].at[rows, jnp.where(there, order, x.shape[1])].set(of_global, mode="drop")
        return jnp.where(fits[:, None, None, None], y, jnp.nan)

    def _weights(self, x: jax.Array, q: jax.Array, k: jax.Array, tokens: Tokens) -> jax.Array:
        """The attention weights of all tokens, (batch, heads, length, length)."""
        real = jnp.ones(x.shape[:2], bool) if tokens.mask is None else tokens.mask
        marked = jnp.zeros_like(real) if tokens.roles is None else (tokens.roles == GLOBAL) & real
        place = jnp.arange(x.shape[1])
        near = jnp.abs(place[:, None] - place) <= self.reach
        documents = {"query_segments": tokens.segment_ids, "key_segments": tokens.segment_ids}
        usual = attention_weights(q, k, mask=((near | marked[:, None]) & real[:, None])[:, None], **documents)
        if tokens.roles is None:
            return usual
        theirs = attention_weights(
            self.global_query(x).reshape(q.shape), self.global_key(x).reshape(k.shape), mask=_of_keys(real), **documents
        )
        return jnp.where(marked[:, None, :, None], theirs, usual)

    @staticmethod
    def _fits(marked: jax.Array, slots: int) -> jax.Array:
        """Bool (batch,): True for rows with at most ``slots`` global tokens.

        Raises:
          ValueError: a row has more (outside ``jit``, where roles are known).
        """
        count = marked.sum(1)
        if not isinstance(count, jax.core.Tracer) and (most := int(count.max())) > slots:
            raise ValueError(
                f"a row has {most} global tokens and max_global is {slots}: make the mixer with a larger max_global"
            )
        return count <= slots


def _of_keys(mask: jax.Array | None) -> jax.Array | None:
    return None if mask is None else mask[:, None, None]
