"""Differential attention: Differential Transformer (Ye et al., 2024, arXiv:2410.05258), eqs. 1 to 3.

    y = (1 - l_init) RMSNorm((softmax(Q1 K1^T / sqrt(d)) - l softmax(Q2 K2^T / sqrt(d))) V)
    l = exp(l_q1 . l_k1) - exp(l_q2 . l_k2) + l_init          l_init = 0.8 - 0.6 exp(-0.3 index)

Two attention maps with queries and keys of half the width share the values of a head; noise, which both attend to,
cancels out. ``index`` is the index of the block, from 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Unpack

import jax
import jax.numpy as jnp

from layers.attention.multi_head import MultiHeadAttention
from layers.attention.projected import HeadOptions
from layers.initializers import constant, normal
from layers.mixer import register_mixer
from layers.module import Constant, of_layers, parameter
from layers.norm import Norm, RMSNorm
from layers.position import Rotary


@register_mixer("differential_attention")
class DifferentialAttention(MultiHeadAttention):
    """Differential attention: :class:`MultiHeadAttention` with twice as many heads of half the width, paired with their
    neighbors.

    Parameters: ``query``, ``key``, ``value``, ``out`` (linear), ``inner_norm``, and ``lambda_q1``, ``lambda_k1``,
    ``lambda_q2``, ``lambda_k2`` (half of the features of a head), shared by all heads.
    """

    def __init__(
        self,
        features: int,
        *,
        causal: bool = False,
        window: int | None = None,
        rotary: Rotary | Mapping[str, Any] | float | None = None,
        qk_norm: Norm | None = None,
        index: int = 0,
        **options: Unpack[HeadOptions],
    ):
        """Args:
          index: index of the block.
          causal, window, rotary, qk_norm, options: as in :class:`MultiHeadAttention`; each head is a pair of attention
            maps.

        Raises:
          ValueError: features not divisible by 2 num_heads.
        """
        num_heads = options["num_heads"]
        if features % (2 * num_heads):
            raise ValueError(
                f"{features} features can't be split over {num_heads} heads of two halves: heads must divide half of "
                f"them"
            )
        masked: dict[str, Any] = {"causal": causal, "window": window, "rotary": rotary, "qk_norm": qk_norm}
        options["num_heads"] = 2 * num_heads
        super().__init__(features, **masked, **options)
        self.inner_norm = RMSNorm(2 * self.head_dim, epsilon=1e-5, **of_layers(options))
        self.lambda_q1, self.lambda_k1, self.lambda_q2, self.lambda_k2 = (
            parameter(normal(0.1), (self.head_dim,), options) for _ in range(4)
        )
        # An array, so that all blocks of a stack share one compiled program.
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
