"""Cottention: Linear Transformers With Cosine Attention (Mongaras et al., 2024, arXiv:2409.18747).

    y_i = sum_j (q_i . k_j) / (|q_i| |k_j|) v_j / n_j^sigmoid(m)

over all j, or over j <= i where causal, with a learned m of each head. n_j is the number of tokens that token j sees: in
the causal form of the authors' training code its own place, so that a value that has been read does not change. There is
no softmax, and the sum of k v^T is all that is kept of the past.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Unpack

import jax
import jax.numpy as jnp

from layers.attention.linear import LinearAttentionState
from layers.attention.projected import HeadOptions, ProjectedAttention
from layers.broadcast import widened
from layers.initializers import constant
from layers.mixer import register_mixer, without_padding
from layers.module import parameter
from layers.position import Rotary
from layers.tokens import Continuation, Tokens
from pallas_kernels import linear_attention


@register_mixer("cosine_attention")
class CosineAttention(ProjectedAttention):
    """Attention by the cosines of queries and keys, in linear time and with a state of fixed size.

    Parameters: ``query``, ``key``, ``value``, ``out`` (linear), and ``power``, m (heads,).
    """

    supports_causal = True
    weighs_values = True
    paper = (120,)
    undecayed = ("power",)

    def __init__(
        self,
        features: int,
        *,
        causal: bool = False,
        head_dim: int | None = None,
        rotary: Rotary | Mapping[str, Any] | float | None = None,
        **options: Unpack[HeadOptions],
    ):
        """Args:
        head_dim, rotary, options: as of :class:`ProjectedAttention`.
        """
        super().__init__(features, head_dim=head_dim, rotary=rotary, qk_norm="unit", **options)
        self.power = parameter(constant(0.5), (self.num_heads,), options)
        self.causal = causal

    @property
    def complexity(self) -> float:
        return 1.0

    @property
    def honors(self) -> frozenset[str]:  # type: ignore[override]
        return frozenset({"mask", "segment_ids"} | (set() if self.rotary is None else {"positions"}))

    def core(self, q: jax.Array, k: jax.Array, v: jax.Array, x: jax.Array, tokens: Tokens) -> jax.Array:
        count = tokens.count(x.shape[1], causal=self.causal)
        return self._weigh(q, k, v, count, tokens, causal=self.causal, starts=tokens.starts())

    def init_state(
        self, batch_size: int, max_length: int | None = None, dtype: Any = jnp.float32
    ) -> LinearAttentionState:
        """An empty state; its size does not depend on the length, and it is never narrower than float32."""
        if not self.causal:
            return super().init_state(batch_size, max_length, dtype)
        memory = (batch_size, self.num_heads, self.head_dim, self.head_dim)
        length, segment = (jnp.zeros((batch_size,), jnp.int32) for _ in range(2))
        return LinearAttentionState(jnp.zeros(memory, jnp.promote_types(dtype, jnp.float32)), length, segment)

    def core_next(
        self,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        x: jax.Array,
        tokens: Tokens,
        state: LinearAttentionState,
        after: Continuation,
    ) -> tuple[jax.Array, LinearAttentionState]:
        options: dict[str, Any] = {"initial_state": state.memory, "starts": tokens.starts(state.segment)}
        y, memory = self._weigh(q, k, v, after.positions + 1, tokens, return_state=True, **options)
        return y, LinearAttentionState(memory.astype(state.memory.dtype), after.length, after.segment)

    def _weigh(self, q: jax.Array, k: jax.Array, v: jax.Array, count: jax.Array, tokens: Tokens, **options: Any) -> Any:
        """What the op gives, with ``options``; ``count`` is n, (batch or 1, length)."""
        power = jax.nn.sigmoid(widened(self.power[...]))
        scale = jnp.exp(-power * jnp.log(count.astype(jnp.float32))[..., None])
        heads = None if tokens.mask is None else tokens.mask[..., None]
        return linear_attention(
            q, without_padding(k, heads), (v * scale[..., None]).astype(v.dtype), scale=1.0, **options
        )
