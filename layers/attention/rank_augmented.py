"""Rank-augmented linear attention: Breaking the Low-Rank Dilemma of Linear Attention (Fan, Huang, He, CVPR 2025,
arXiv:2411.07635).

    a = n softmax_j(mean_i(phi(q_i)) . phi(k_j) / sqrt(d))                    the weight of each key
    y_i = R phi(q_i) sum_j (R a_j phi(k_j)) v_j^T / n / (phi(q_i) . mean_j(a_j phi(k_j)) + 1e-6)
    out = W_o ((y + C(v)) * W_g x)

with phi = elu + 1, n tokens, R a rotary embedding by row and column and C a depth-wise 5x5 convolution. The gate W_g x
has no activation. On small maps RAVLT uses y = softmax(R q (R k)^T / sqrt(d)) v with the same convolution and gate.
"""

from __future__ import annotations

from typing import Unpack

import jax
import jax.numpy as jnp

from layers.attention.projected import HeadOptions, ProjectedAttention, of_projections
from layers.depthwise import DepthwiseConv
from layers.feature_maps import create_feature_map
from layers.linear import Linear
from layers.mixer import register_mixer, without_padding
from layers.module import of_layers
from layers.position import Rotary
from layers.tokens import Tokens
from pallas_kernels import attention, linear_attention


@register_mixer("rala")
class RankAugmentedLinearAttention(ProjectedAttention):
    """Linear attention on a map whose keys are weighted by the attention of the mean query, with a gated output.

    Masked tokens are excluded from all sums and means.

    Parameters: ``query``, ``key``, ``value``, ``gate``, ``out`` (linear), and ``enhancement``, the convolution C.
    """

    layouts = ("grid",)
    paper = (45,)

    def __init__(self, features: int, *, softmax: bool = False, epsilon: float = 1e-6, **options: Unpack[HeadOptions]):
        """Args:
          softmax: use softmax attention instead of linear attention, for small maps.
          epsilon: added to the sum of the weights.
          options: as in :class:`ProjectedAttention`.

        Raises:
          ValueError: features not divisible by num_heads.
        """
        super().__init__(features, **options)
        self.gate = Linear(features, features, use_bias=options.get("use_bias", True), **of_projections(options))
        self.enhancement = DepthwiseConv(features, 5, **of_layers(options))
        self.feature_map = create_feature_map("elu+1", self.head_dim, rngs=options["rngs"])
        # Queries and keys are rotated after the feature map, and the unrotated ones are needed too.
        self.turn = Rotary(interleaved=True, endpoint=True)
        self.softmax, self.epsilon = softmax, epsilon

    @property
    def complexity(self) -> float:
        return 2.0 if self.softmax else 1.0

    def core(self, q: jax.Array, k: jax.Array, v: jax.Array, x: jax.Array, tokens: Tokens) -> jax.Array:
        (grid, _), mask, length = tokens.image(x.shape[1]), tokens.mask, x.shape[1]
        places = tokens.grid_places(length)
        assert places is not None  # a mixer of maps
        if self.softmax:
            seen = None if mask is None else mask[:, None, None]
            y = attention(self.turn(q, places), self.turn(k, places), v, mask=seen)
        else:
            y = self._linear(q, k, v, places, mask)
        local = self.enhancement(without_padding(v.reshape(x.shape), mask).reshape(-1, *grid, x.shape[2]))
        return (y.reshape(x.shape) + local.reshape(x.shape)) * self.gate(x)

    def _linear(self, q: jax.Array, k: jax.Array, v: jax.Array, places: jax.Array, mask: jax.Array | None) -> jax.Array:
        """The linear form of y; sums over tokens, means and quotients are at least float32."""
        real = jnp.ones((1, q.shape[1]), bool) if mask is None else mask
        wide = jnp.promote_types(v.dtype, jnp.float32)
        count = jnp.maximum(jnp.sum(real, 1), 1).astype(wide)[:, None, None]
        q, k = self.feature_map(q.astype(wide)), self.feature_map(k.astype(wide))
        mean = jnp.sum(without_padding(q, real[..., None]), 1) / count
        scores = jnp.einsum("bhd,blhd->blh", mean, k) * self.head_dim**-0.5
        scores = jnp.where(real[..., None], scores, -jnp.inf)
        top = jax.lax.stop_gradient(jnp.max(scores, 1, keepdims=True))
        kept = jnp.exp(scores - jnp.where(top == -jnp.inf, 0.0, top))
        kept = kept / jnp.maximum(jnp.sum(kept, 1, keepdims=True), jnp.finfo(wide).tiny)
        k = k * kept[..., None]  # the n before the softmax and the mean's cancel
        y = linear_attention(self.turn(q, places), self.turn(k, places), v.astype(wide), scale=1.0, causal=False)
        total = jnp.einsum("blhd,bhd->blh", q, jnp.sum(k, 1))
        return (y / (total + self.epsilon)[..., None]).astype(v.dtype)
