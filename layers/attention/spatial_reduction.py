"""Spatial-reduction attention: Pyramid Vision Transformer (Wang et al., ICCV 2021, arXiv:2102.12122; v2, 2022,
arXiv:2106.13797).

y = attention(Q = x, K = V = r(x))
r(x) = LN(W patches(x))                 of stride x stride tokens each (PVT, eq. 2)
r(x) = gelu(LN(W average_pool(x)))      of pool x pool tokens for the whole map (PVT v2, "linear")
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from layers.attention.multi_head import MultiHeadAttention
from layers.initializers import variance_scaling
from layers.mixer import Mixer, register_mixer, without_padding
from layers.mlp import gelu
from layers.patch import PatchEmbed
from layers.pool import adaptive_average_pool
from layers.tokens import Tokens


@register_mixer("spatial_reduction")
class SpatialReductionAttention(Mixer):
    """Attention of the tokens of a map to a reduced map: to patches of ``stride`` x ``stride`` tokens, or to averages
    over parts of the map.

    Incomplete patches at the border are left out, as in the authors' convolution. Parameters: ``attention.*`` and, if
    the map is reduced, ``reduction.*`` with its ``norm``.
    """

    layouts = ("grid",)

    def __init__(
        self,
        features: int,
        *,
        num_heads: int,
        stride: int = 1,
        pool: int | None = None,
        dropout: float = 0.0,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Args:
        stride: side of the patch that is reduced to one token; 1 for no reduction.
        pool: side of the reduced map in tokens; replaces the stride.
        """
        common = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.attention = MultiHeadAttention(
            features, num_heads=num_heads, context_features=features, dropout=dropout, **common
        )
        patches = {"norm": "layer", "kernel_init": variance_scaling(2.0, "fan_out", "normal"), **common}
        reduced = stride > 1 or pool is not None
        self.reduction = PatchEmbed(1 if pool else stride, features, features, **patches) if reduced else None
        self.stride, self.pool = stride, pool

    @property
    def complexity(self) -> float:
        return 2.0 if self.pool is None else 1.0

    def mix(self, x: jax.Array, tokens: Tokens) -> jax.Array:
        batch, height, width, features = x.shape
        reduced, kept = self._reduced(without_padding(x, tokens.mask), tokens.mask)
        mask, context_mask = (None if m is None else m.reshape(batch, -1) for m in (tokens.mask, kept))
        known = Tokens(mask=mask, context=reduced.reshape(batch, -1, features), context_mask=context_mask)
        return self.attention(x.reshape(batch, height * width, features), known).reshape(x.shape)

    def _reduced(self, x: jax.Array, mask: jax.Array | None) -> tuple[jax.Array, jax.Array | None]:
        """The reduced map, and its mask: the tokens that contain a real token.

        Raises:
          ValueError: a map that is smaller than a patch.
        """
        if self.reduction is None:
            return x, mask
        if self.pool is not None:
            pooled, share = adaptive_average_pool(x, (self.pool, self.pool), mask)
            return gelu(self.reduction(pooled)), None if mask is None else share > 0
        batch, side = x.shape[0], self.stride
        rows, columns = (size // side for size in x.shape[1:3])
        if not rows * columns:
            raise ValueError(
                f"a map of {x.shape[1]}x{x.shape[2]} tokens can't be reduced by {side}: the image must be larger, or "
                f"the stride smaller"
            )
        if mask is not None:
            mask = mask[:, : rows * side, : columns * side].reshape(batch, rows, side, columns, side).any((2, 4))
        return self.reduction(x[:, : rows * side, : columns * side]), mask
