"""Attention with universal relative positions: Your Transformer May Not be as Powerful as You Expect (Luo et al., NeurIPS
2022, arXiv:2205.13401), eq. 5.

    y_i = sum_j c_{j-i} softmax_j(q_i . k_j / sqrt(d) + b_{j-i}) v_j

With b alone the weights of a query sum to 1, so that a sequence of equal tokens gives equal outputs whatever b is: no
such network can tell positions apart. The factors c after the softmax end that.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx

from layers.attention.multi_head import MultiHeadAttention
from layers.initializers import truncated_normal
from layers.mixer import register_mixer
from layers.norm import Norm
from layers.position import Rotary


@register_mixer("urpe_attention")
class UniversalAttention(MultiHeadAttention):
    """Softmax attention with a learned number for each distance before the softmax and another one after it.

    It is ``attention`` with ``relative="universal"``. Each layer has tables of its own, where the authors' models have
    one for all.

    Parameters: those of :class:`MultiHeadAttention`, with ``relative.table`` and ``relative.factor`` (heads, span).
    """

    paper = (1,)

    def __init__(
        self,
        features: int,
        *,
        num_heads: int,
        num_kv_heads: int | None = None,
        head_dim: int | None = None,
        causal: bool = False,
        window: int | None = None,
        reach: int = 128,
        rotary: Rotary | Mapping[str, Any] | float | None = None,
        qk_norm: Norm | None = None,
        use_bias: bool = True,
        dropout: float = 0.0,
        kernel_init: Any = truncated_normal(0.02),
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Args:
        num_heads, num_kv_heads, head_dim, causal, window, rotary, qk_norm, use_bias, dropout: as of
          :class:`MultiHeadAttention`.
        reach: greatest distance with numbers of its own; those beyond have that of the greatest.
        """
        heads: dict[str, Any] = {"num_heads": num_heads, "num_kv_heads": num_kv_heads, "head_dim": head_dim}
        seen: dict[str, Any] = {"causal": causal, "window": window, "rotary": rotary, "qk_norm": qk_norm}
        common: dict[str, Any] = {"kernel_init": kernel_init, "dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        relative = {"name": "universal", "reach": reach}
        super().__init__(features, relative=relative, use_bias=use_bias, dropout=dropout, **heads, **seen, **common)
