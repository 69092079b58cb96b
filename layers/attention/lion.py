"""LION: Linear Attention for Efficient Bidirectional Sequence Modeling (Afzal et al., 2025, arXiv:2502.16249), sections 3
and 4.

    y_i = sum_j w_ij v_j / sum_j w_ij        w_ij = phi(q_i) . phi(k_j) d_ij / sqrt(head_dim)

    LION-LIT    d_ij = 1                                             phi(x) = elu(x) + 1
    LION-D      d_ij = a^|i - j|,  a = sigmoid(b) of each head       phi(x) = (silu(x) + 1/2) / |silu(x) + 1/2|
    LION-S      d_ij = a_j ... a_{i-1} for j < i,  a_{i+1} ... a_j for j > i,  a = 1 - sigmoid(W x + b); phi as above

Both directions are one linear recurrence from each end. That of LION-S gives a_i d_ij, whose first factor is that of the
whole row and cancels.
"""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from layers.attention.projected import ProjectedAttention
from layers.broadcast import widened
from layers.feature_maps import create_feature_map
from layers.initializers import normal, truncated_normal
from layers.linear import Linear
from layers.linear_attention.memory import sums, with_ones
from layers.mixer import register_mixer, without_padding
from layers.tokens import Tokens
from pallas_kernels import linear_attention

LEAST_DECAY = -69.0
"""The least log decay: its exponential is a normal float32."""


@register_mixer("lion")
class LionAttention(ProjectedAttention):
    """Linear attention to both sides whose tokens count less the farther away they are.

    Parameters: ``query``, ``key``, ``value``, ``out`` (linear), with decay "fixed" ``rates`` (heads,), with "selective"
    ``decay`` (linear). The tokens before those of a grid, such as a class token, do not decay.
    """

    paper = (130,)
    honors = frozenset({"mask", "segment_ids"})
    weighs_values = True

    def __init__(
        self,
        features: int,
        *,
        num_heads: int,
        decay: Literal["none", "fixed", "selective"] = "selective",
        epsilon: float = 1e-6,
        use_bias: bool = True,
        dropout: float = 0.0,
        kernel_init: Any = truncated_normal(0.02),
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Args:
          num_heads, use_bias, dropout: as of :class:`ProjectedAttention`.
          decay: "none" is LION-LIT, "fixed" LION-D, "selective" LION-S.
          epsilon: added to the sum of the weights.

        Raises:
          ValueError: features not divisible by num_heads, or an unknown decay.
        """
        if decay not in ("none", "fixed", "selective"):
            raise ValueError(f"LionAttention: decay is none, fixed or selective; got {decay!r}")
        made: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        options: dict[str, Any] = {"use_bias": use_bias, "dropout": dropout, "kernel_init": kernel_init}
        super().__init__(features, num_heads=num_heads, **options, **made)
        self.feature_map = create_feature_map("elu+1" if decay == "none" else "silu+0.5", self.head_dim, rngs=rngs)
        self.rates = nnx.Param(normal(1.0)(rngs.params(), (num_heads,), param_dtype)) if decay == "fixed" else None
        self.decay = Linear(features, num_heads, kernel_init=kernel_init, **made) if decay == "selective" else None
        self.epsilon = epsilon

    @property
    def complexity(self) -> float:
        return 1.0

    def core(self, q: jax.Array, k: jax.Array, v: jax.Array, x: jax.Array, tokens: Tokens) -> jax.Array:
        q, k = self.feature_map(q), self.feature_map(k)
        wide = jnp.promote_types(v.dtype, jnp.float32)
        decay, epsilon = None, jnp.full((1, 1, 1), self.epsilon, wide)
        if self.rates is not None:
            decay = jnp.maximum(jax.nn.log_sigmoid(widened(self.rates[...])), LEAST_DECAY)
        elif self.decay is not None:
            decay = jnp.maximum(jax.nn.log_sigmoid(-self.decay(x).astype(wide)), LEAST_DECAY)
            decays = jnp.arange(x.shape[1]) >= tokens.prefix(x.shape[1])
            decay = jnp.where(decays[:, None], decay, 0)
            if tokens.mask is not None:
                decay = jnp.where(tokens.mask[..., None], decay, 0)
            # What a row is multiplied by, of which its sum of weights is no exception.
            k, epsilon = (k * jnp.exp(decay)[..., None]).astype(k.dtype), self.epsilon * jnp.exp(decay)
        k = without_padding(k, None if tokens.mask is None else tokens.mask[..., None])
        y = linear_attention(q, k, with_ones(v.astype(wide)), decay=decay, causal=False, starts=tokens.starts())
        value, weight = sums(y)
        return (value / (weight + epsilon[..., None])).astype(v.dtype)
