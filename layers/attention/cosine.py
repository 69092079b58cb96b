"""Cottention: Linear Transformers With Cosine Attention (Mongaras et al., 2024, arXiv:2409.18747).

    y_i = sum_j (q_i . k_j) / (|q_i| |k_j|) v_j / n_j^sigmoid(m)

over all j, or over j <= i if causal, with a learned m per head. n_j is the number of tokens that token j sees; in the
causal form it is the position of j counted from 1, as in the authors' training code, so that values already read do not
change. There is no softmax, and the state is only the sum of k v^T.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Unpack

import jax
import jax.numpy as jnp

from layers.attention.projected import HeadOptions
from layers.attention.summed import Reading, SummedAttention
from layers.broadcast import widened
from layers.initializers import constant
from layers.mixer import register_mixer, without_padding
from layers.module import parameter
from layers.position import Rotary


@register_mixer("cosine_attention")
class CosineAttention(SummedAttention):
    """Attention weighted by the cosine similarity of queries and keys, in linear time with a state of fixed size.

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
        head_dim, rotary, options: as in :class:`ProjectedAttention`.
        """
        super().__init__(features, causal=causal, head_dim=head_dim, rotary=rotary, qk_norm="unit", **options)
        self.power = parameter(constant(0.5), (self.num_heads,), options)

    def sum_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """One sum: k v^T."""
        return {"memory": (self.num_heads, self.head_dim, self.head_dim)}

    def attend(self, q: jax.Array, k: jax.Array, v: jax.Array, reading: Reading) -> jax.Array:
        power = jax.nn.sigmoid(widened(self.power[...]))
        scale = jnp.exp(-power * jnp.log(reading.count().astype(jnp.float32))[..., None])
        values = (v * scale[..., None]).astype(v.dtype)
        return reading.sum("memory", q, without_padding(k, reading.heads_mask()), values)
