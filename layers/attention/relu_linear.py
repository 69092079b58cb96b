"""Linear global attention: The Linear Attention Resurrection in Vision Transformer (Zheng, 2025, arXiv:2501.16182).

    y_i = t_h relu(q_i) sum_j relu(k_j) v_j^T / max(relu(q_i) . sum_j relu(k_j), c)

with c = 100 and a learned temperature t per head, initially 1 / sqrt(d). The floor c is far above a usual epsilon and
bounds the quotient: whether it acts depends on the number of tokens and on the scale of queries and keys, so it is part
of the model.
"""

from __future__ import annotations

from typing import Unpack

import jax
import jax.numpy as jnp

from layers.attention.projected import HeadOptions, ProjectedAttention
from layers.initializers import constant
from layers.mixer import register_mixer, without_padding
from layers.module import parameter
from layers.tokens import Tokens
from pallas_kernels import linear_attention


@register_mixer("relu_linear")
class ReLULinearAttention(ProjectedAttention):
    """Linear attention with ReLU features, normalized by the sum of weights with a floor.

    Parameters: ``query``, ``key``, ``value``, ``out`` (linear), ``temperature`` (heads,).
    """

    layouts = ("sequence", "grid")
    paper = (227,)
    weighs_values = True

    def __init__(self, features: int, *, floor: float = 100.0, **options: Unpack[HeadOptions]):
        """Args:
          floor: c, the smallest value by which the weighted sum is divided.
          options: as in :class:`ProjectedAttention`.

        Raises:
          ValueError: features not divisible by num_heads, or a floor that is not positive.
        """
        if floor <= 0:
            raise ValueError(f"the floor of the sum of weights must be positive, got {floor}")
        super().__init__(features, **options)
        self.temperature = parameter(constant(self.head_dim**-0.5), (self.num_heads,), options)
        self.floor = floor

    @property
    def complexity(self) -> float:
        return 1.0

    def core(self, q: jax.Array, k: jax.Array, v: jax.Array, x: jax.Array, tokens: Tokens) -> jax.Array:
        wide = jnp.promote_types(v.dtype, jnp.float32)
        heads = None if tokens.mask is None else tokens.mask[..., None]
        q, k = jax.nn.relu(q.astype(wide)), without_padding(jax.nn.relu(k.astype(wide)), heads)
        y = linear_attention(q, k, v.astype(wide), scale=1.0, causal=False)
        total = jnp.einsum("blhd,bhd->blh", q, jnp.sum(k, 1))
        factor = self.temperature[...].astype(wide) / jnp.maximum(total, self.floor)
        return (y * factor[..., None]).astype(v.dtype)
