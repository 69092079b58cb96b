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

from layers.attention.linear import LinearAttention
from layers.attention.projected import HeadOptions
from layers.broadcast import widened
from layers.initializers import constant
from layers.mixer import register_mixer, without_padding
from layers.module import parameter
from layers.position import Rotary
from layers.tokens import Continuation, Tokens
from pallas_kernels import linear_attention


@register_mixer("cosine_attention")
class CosineAttention(LinearAttention):
    """Attention by the cosines of queries and keys, in linear time and with a state of fixed size.

    Parameters: ``query``, ``key``, ``value``, ``out`` (linear), and ``power``, m (heads,).
    """

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
        heads: dict[str, Any] = {"head_dim": head_dim, "rotary": rotary, "qk_norm": "unit", "feature_map": "identity"}
        super().__init__(features, causal=causal, **heads, **options)
        self.power = parameter(constant(0.5), (self.num_heads,), options)

    def _memory_shape(self) -> tuple[int, int]:
        return self.head_dim, self.head_dim

    def _attend(
        self, q: jax.Array, k: jax.Array, v: jax.Array, tokens: Tokens, after: Continuation | None, **options: Any
    ) -> tuple[jax.Array, jax.Array | None]:
        count = tokens.count(k.shape[1], causal=self.causal) if after is None else after.positions + 1
        power = jax.nn.sigmoid(widened(self.power[...]))
        scale = jnp.exp(-power * jnp.log(count.astype(jnp.float32))[..., None])
        heads = None if tokens.mask is None else tokens.mask[..., None]
        values = (v * scale[..., None]).astype(v.dtype)
        found = linear_attention(q, without_padding(k, heads), values, scale=1.0, **options)
        return found if options.get("return_state") else (found, None)
