"""InLine attention: Bridging the Divide, Reconsidering Softmax and Linear Attention (Han et al., NeurIPS 2024,
arXiv:2412.06590).

    y_i = sum_j a_ij v_j + R(V)_i        a_ij = (s q_i . k_j + 1 - s q_i . mean(k)) / n        s = 1 / sqrt(d)

(eq. 5 with the authors' scale.) The weights sum to 1 and may be negative; if the keys have full rank, different queries
have different weights. Written as sums over j, the cost is only n d^2:

    y_i = mean(v) + s q_i sum_j (k_j - mean(k)) v_j^T / n + R(V)_i

R is a depth-wise 3x3 convolution of the map, whose kernel is computed from the mean token of the example: W = G_2
gelu(G_1 mean(x)), with linear layers G_1 and G_2 per head (section 4.3). In the authors' CSWin, x is the input of the
residual block before its norm, and a depth-wise 3x3 convolution with fixed weights is added to the output.
"""

from __future__ import annotations

from typing import Unpack

import jax
import jax.numpy as jnp

from layers.attention.projected import HeadOptions, ProjectedAttention, of_projections
from layers.depthwise import DepthwiseConv
from layers.feature_maps import FeatureMapSpec, create_feature_map
from layers.linear import Conv
from layers.mixer import register_mixer, without_padding
from layers.mlp import gelu
from layers.module import Diagnostic, of_layers
from layers.norm import Norm, create_norm
from layers.tokens import Tokens
from pallas_kernels import linear_attention


@register_mixer("inline")
class InLineAttention(ProjectedAttention):
    """Linear attention whose weights sum to 1 and differ between queries, plus a convolution predicted for each image.

    Masked tokens are excluded from all means and count as zeros in the convolution.

    Parameters: ``query``, ``key``, ``value``, ``out`` (linear), ``kernel_hidden``, ``kernel_out`` (G_1 and G_2, grouped
    convolutions of size 1) if there is a residual, and ``norm``, ``enhancement`` (convolution) if enabled.

    Attributes:
      norm: norm of the mixer's own input, or None; a block then has no norm before the mixer.
    """

    layouts = ("grid", "image")
    paper = (232,)

    def __init__(
        self,
        features: int,
        *,
        residual: int = 3,
        feature_map: FeatureMapSpec = "identity",
        enhancement: int = 0,
        norm: Norm | None = None,
        **options: Unpack[HeadOptions],
    ):
        """Args:
          residual: side of the kernel of R in tokens, an odd number; 0 for none.
          feature_map: feature map of queries and keys (:mod:`layers.feature_maps`); the authors' models have none.
          enhancement: side of the kernel of a depth-wise convolution of the values, an odd number; 0 for none.
          norm: norm of the input of the query, key and value projections; the mean token from which R is computed is
            not normalized.
          options: as in :class:`ProjectedAttention`.

        Raises:
          ValueError: features not divisible by num_heads, an even convolution, or an unknown feature map.
        """
        for name, size in (("residual", residual), ("enhancement", enhancement)):
            if size and size % 2 == 0:
                raise ValueError(
                    f"{name} is the side of a convolution's kernel and must be odd, or 0 for none; got {size}"
                )
        super().__init__(features, **options)
        layers = of_layers(options)
        self.norm = None if norm is None else create_norm(norm, features, epsilon=1e-5, **layers)
        self.enhancement = DepthwiseConv(features, enhancement, **layers) if enhancement else None
        common = of_projections(options)
        self.feature_map = create_feature_map(feature_map, self.head_dim, rngs=options["rngs"])
        self.kernel_hidden, self.kernel_out = (
            Conv(features, features * size, (1,), feature_group_count=self.num_heads, **common) if residual else None
            for size in (1, residual**2)
        )
        self.residual = residual

    @property
    def complexity(self) -> float:
        return 1.0

    def queries(self, x: jax.Array, places: jax.Array | None) -> jax.Array:
        return super().queries(self._normed(x), places)

    def keys_and_values(self, x: jax.Array, places: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        return super().keys_and_values(self._normed(x), places)

    def _normed(self, x: jax.Array) -> jax.Array:
        return x if self.norm is None else self.norm(x)

    def core(self, q: jax.Array, k: jax.Array, v: jax.Array, x: jax.Array, tokens: Tokens) -> jax.Array:
        (grid, prefix), mask = tokens.image(x.shape[1]), tokens.mask
        heads = None if mask is None else mask[..., None]
        q, k, v = self.feature_map(q), self.feature_map(k), without_padding(v, heads)
        wide = jnp.promote_types(v.dtype, jnp.float32)
        real = jnp.ones((1, x.shape[1]), wide) if mask is None else mask.astype(wide)
        share = real / jnp.maximum(real.sum(1, keepdims=True), 1)

        def mean(a: jax.Array) -> jax.Array:
            return jnp.einsum("bn,bn...->b...", jnp.broadcast_to(share, a.shape[:2]), a.astype(wide))[:, None]

        centered = (k - mean(k)) * share[..., None, None]
        if self.sowing(Diagnostic, "attention"):
            scores = jnp.einsum("bqhd,bkhd->bhqk", q.astype(wide), centered, precision="highest")
            self.sow(Diagnostic, "attention", share[:, None, None] + self.head_dim**-0.5 * scores)
        y = mean(v) + linear_attention(q, centered, v.astype(wide), causal=False, scale=self.head_dim**-0.5)
        y = y.astype(v.dtype)
        if self.kernel_hidden is None and self.enhancement is None:
            return y
        values = v[:, prefix:].reshape(x.shape[0], *grid, -1)
        local = jnp.zeros_like(values) if self.enhancement is None else self.enhancement(values)
        if self.kernel_hidden is not None and self.kernel_out is not None:
            kernel = self.kernel_out(gelu(self.kernel_hidden(mean(x).astype(x.dtype))))
            local = local + _convolution(values, kernel.reshape(x.shape[0], -1, self.residual, self.residual))
        local = local.reshape(x.shape[0], -1, *v.shape[2:])
        return y + jnp.pad(local, ((0, 0), (prefix, 0), (0, 0), (0, 0)))


def _convolution(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolves each map (height, width, features) of ``x`` with its own depth-wise ``kernel`` (features, size, size),
    padding with zeros.
    """
    (height, width), size = x.shape[1:3], kernel.shape[-1]
    padded = jnp.pad(x, ((0, 0), (size // 2, size // 2), (size // 2, size // 2), (0, 0)))
    shifts = [(i, j) for i in range(size) for j in range(size)]
    return sum(
        (padded[:, i : i + height, j : j + width] * kernel[:, None, None, :, i, j] for i, j in shifts[1:]),
        padded[:, :height, :width] * kernel[:, None, None, :, 0, 0],
    )
