"""Cross-shaped window attention: CSWin Transformer (Dong et al., CVPR 2022, arXiv:2107.00652).

Half of the heads attend in vertical stripes of the map, s tokens wide and as high as the map, the other half in
horizontal ones, so that two layers connect all tokens:

    y = W_o [attention_vertical(q_1, k_1, v_1) + C_1(v_1); attention_horizontal(q_2, k_2, v_2) + C_2(v_2)]

C is a depth-wise 3x3 convolution of the values inside each stripe, zero-padded at its border ("locally-enhanced
positional encoding"). In the last stage the stripe is the whole map: plain attention with all heads.
"""

from __future__ import annotations

from typing import Unpack

import jax
import jax.numpy as jnp
from flax import nnx

from layers.attention.projected import HeadOptions, ProjectedAttention
from layers.depthwise import DepthwiseConv
from layers.mixer import register_mixer, without_padding
from layers.module import of_layers
from layers.tokens import Tokens
from pallas_kernels import attention


@register_mixer("cross_shaped")
class CrossShapedAttention(ProjectedAttention):
    """Softmax attention in vertical and horizontal stripes of a map.

    A map whose side is not a multiple of the stripe is padded with tokens that no token attends to.

    Parameters: ``query``, ``key``, ``value``, ``out`` (linear), and ``enhancement.N``, the convolutions of the vertical
    (0) and of the horizontal stripes (1); only one if the stripe is the map.
    """

    layouts = ("grid",)

    def __init__(self, features: int, *, stripe: int | None = 7, **options: Unpack[HeadOptions]):
        """Args:
          stripe: s, width of a stripe in tokens; None for the whole map.
          options: as in :class:`ProjectedAttention`.

        Raises:
          ValueError: features not divisible by num_heads, a stripe below 1, or stripes with an odd number of heads.
        """
        super().__init__(features, **options)
        if stripe is not None and (self.num_heads % 2 or stripe < 1):
            raise ValueError(
                f"half of the heads see vertical stripes of at least one token: got {self.num_heads} heads and stripes"
                f" of {stripe}"
            )
        sizes = [features] if stripe is None else [features // 2] * 2
        self.enhancement = nnx.List([DepthwiseConv(size, 3, **of_layers(options)) for size in sizes])
        self.stripe = stripe

    @property
    def complexity(self) -> float:
        return 2.0 if self.stripe is None else 1.5

    def core(self, q: jax.Array, k: jax.Array, v: jax.Array, x: jax.Array, tokens: Tokens) -> jax.Array:
        (height, width), _ = tokens.image(x.shape[1])
        stripe = self.stripe
        windows = [(height, width)] if stripe is None else [(height, stripe), (stripe, width)]
        maps = [a.reshape(a.shape[0], height, width, *a.shape[2:]) for a in (q, k, v)]
        mask = None if tokens.mask is None else tokens.mask.reshape(-1, height, width)
        queries, keys, values = (jnp.split(a, len(windows), axis=3) for a in maps)
        found = [
            self._attend(queries[i], keys[i], values[i], mask, window, self.enhancement[i])
            for i, window in enumerate(windows)
        ]
        return jnp.concatenate(found, axis=3).reshape(x.shape)

    def _attend(
        self,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        mask: jax.Array | None,
        window: tuple[int, int],
        convolution: DepthwiseConv,
    ) -> jax.Array:
        """Attention plus the convolution, inside windows of maps (batch, height, width, heads, head_dim)."""
        batch, height, width = q.shape[:3]
        count = -(-height // window[0]), -(-width // window[1])
        sides = tuple((0, n * size - has) for n, size, has in zip(count, window, (height, width), strict=True))
        if mask is None and any(end for _, end in sides):
            mask = jnp.ones((batch, height, width), bool)

        def cut(a: jax.Array) -> jax.Array:
            a = jnp.pad(a, ((0, 0), *sides, *((0, 0),) * (a.ndim - 3)))
            a = a.reshape(batch, count[0], window[0], count[1], window[1], *a.shape[3:]).swapaxes(2, 3)
            return a.reshape(-1, *window, *a.shape[5:])

        def joined(a: jax.Array) -> jax.Array:
            a = a.reshape(batch, *count, *window, *a.shape[3:]).swapaxes(2, 3)
            a = a.reshape(batch, count[0] * window[0], count[1] * window[1], *a.shape[5:])
            return a[:, :height, :width]

        size = window[0] * window[1]
        queries, keys, values = (cut(a) for a in (q, k, v))
        seen = None if mask is None else cut(mask)
        flat = (a.reshape(a.shape[0], size, *a.shape[3:]) for a in (queries, keys, values))
        y = attention(*flat, mask=None if seen is None else seen.reshape(-1, 1, 1, size))
        merged = values.reshape(*values.shape[:3], -1)
        local = convolution(without_padding(merged, seen))
        return joined(y.reshape(values.shape) + local.reshape(values.shape))
