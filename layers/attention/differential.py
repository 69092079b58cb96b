"""Differential attention: Differential Transformer (Ye et al., 2024, arXiv:2410.05258), eqs. 1 to 3.

    y = (1 - l_init) RMSNorm((softmax(Q1 K1^T / sqrt(d)) - l softmax(Q2 K2^T / sqrt(d))) V)
    l = exp(l_q1 . l_k1) - exp(l_q2 . l_k2) + l_init          l_init = 0.8 - 0.6 exp(-0.3 index)

Two attention maps of half the width share the values of a head; what both attend to, noise, cancels out. ``index`` is
that of the block, from 0.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from layers.attention.multi_head import MultiHeadAttention
from layers.initializers import constant, normal
from layers.mixer import register_mixer
from layers.module import Constant
from layers.norm import Norm, RMSNorm


@register_mixer("differential_attention")
class DifferentialAttention(MultiHeadAttention):
    """Differential attention: :class:`MultiHeadAttention` of twice as many heads of half the width, in pairs of
    neighbors.

    Parameters: ``query``, ``key``, ``value``, ``out`` (linear), ``inner_norm``, and ``lambda_q1``, ``lambda_k1``,
    ``lambda_q2``, ``lambda_k2`` (features of half a head), which all heads share.
    """

    def __init__(
        self,
        features: int,
        *,
        num_heads: int,
        causal: bool = False,
        window: int | None = None,
        rotary: float | None = None,
        qk_norm: Norm | None = None,
        use_bias: bool = True,
        out_bias: bool | None = None,
        index: int = 0,
        dropout: float = 0.0,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Args:
          num_heads: pairs of attention maps.
          causal, window, rotary, qk_norm, use_bias, out_bias, dropout: as of :class:`MultiHeadAttention`.
          index: of the block.

        Raises:
          ValueError: features that can't be shared out to two halves of each head.
        """
        if features % (2 * num_heads):
            raise ValueError(
                f"{features} features can't be split over {num_heads} heads of two halves: heads must divide half of "
                f"them"
            )
        masked: dict[str, Any] = {"causal": causal, "window": window, "rotary": rotary, "qk_norm": qk_norm}
        common: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        biases: dict[str, Any] = {"use_bias": use_bias, "out_bias": out_bias}
        super().__init__(features, num_heads=2 * num_heads, dropout=dropout, **biases, **masked, **common)
        self.inner_norm = RMSNorm(2 * self.head_dim, epsilon=1e-5, **common)

        def vector() -> nnx.Param:
            return nnx.Param(normal(0.1)(rngs.params(), (self.head_dim,), param_dtype))

        self.lambda_q1, self.lambda_k1, self.lambda_q2, self.lambda_k2 = vector(), vector(), vector(), vector()
        # An array, so that the blocks of a stack stay one program.
        self.initial = Constant(constant(0.8 - 0.6 * math.exp(-0.3 * index))(None, ()))

    def attend(self, q: jax.Array, k: jax.Array, v: jax.Array, x: jax.Array, **known: Any) -> jax.Array:
        values = v.reshape(*v.shape[:2], self.num_heads // 2, 2 * self.head_dim)
        y = super().attend(q, k, jnp.repeat(values, 2, axis=2), x, **known)
        parts = (self.lambda_q1, self.lambda_k1, self.lambda_q2, self.lambda_k2)
        q1, k1, q2, k2 = (part[...].astype(jnp.float32) for part in parts)
        initial = self.initial[...]
        weight = jnp.exp(jnp.sum(q1 * k1)) - jnp.exp(jnp.sum(q2 * k2)) + initial
        first, second = y[:, :, ::2].astype(jnp.float32), y[:, :, 1::2].astype(jnp.float32)
        return (self.inner_norm(first - weight * second) * (1 - initial)).astype(y.dtype)
