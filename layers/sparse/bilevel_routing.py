"""BiFormer: Vision Transformer with Bi-Level Routing Attention (Zhu et al., CVPR 2023, arXiv:2303.08810).

The grid is divided into S x S regions. Each region attends only to the k regions whose mean keys score highest against
its mean query:

    Q_r, K_r = region means of Q, K;   A_r = Q_r K_r^T;   I_r = top-k indices of the rows of A_r
    O = Attention(Q, gather(K, I_r), gather(V, I_r)) + LCE(V)

(eqs. 3 to 7; LCE is a depth-wise 5x5 convolution, the local context enhancement.)
"""

from __future__ import annotations

from typing import Any, Unpack

import jax
import jax.numpy as jnp

from layers.attention.projected import HeadOptions, ProjectedAttention
from layers.depthwise import DepthwiseConv
from layers.mixer import register_mixer, without_padding
from layers.module import Diagnostic, of_layers
from layers.tokens import Tokens
from pallas_kernels import attention, attention_weights


@register_mixer("bilevel_routing")
class BilevelRoutingAttention(ProjectedAttention):
    """Attention of each region to its top-k regions, plus local enhancement.

    A grid that the regions do not divide is padded at the bottom and right with zeros before the
    projections; like the authors', this padding can be attended to, so that released weights keep
    their outputs. Tokens that the caller masks are never attended to, nor counted in region means.

    The top-k is discrete: no gradient flows through the routing scores (as published).
    """

    layouts = ("grid",)
    paper = (90,)

    def __init__(
        self,
        features: int,
        *,
        regions: int = 7,
        topk: int | None = 4,
        routing: str = "learned",
        scale: float | None = None,
        enhancement_size: int = 5,
        enhance: str = "value",
        **options: Unpack[HeadOptions],
    ):
        """Args:
          regions: S, regions along each side of the grid.
          topk: regions each region attends to; None attends to all tokens, without regions.
          routing: "learned", or "random": a fixed random choice of regions, a baseline that measures the benefit of
            routing.
          scale: factor of the logits of tokens and of regions. Default features ** -0.5, the authors' choice.
          enhancement_size: kernel size of the depth-wise convolution, 0 for none.
          enhance: input of the convolution: "value", or "input" (the authors' dense last stage).
          options: as in :class:`ProjectedAttention`; the output projection has a bias by default.

        Raises:
          ValueError: heads that don't divide the features, or options out of range.
        """
        if topk is not None and not 1 <= topk <= regions**2:
            raise ValueError(f"topk must lie between 1 and the {regions**2} regions, got {topk}")
        if routing not in ("learned", "random"):
            raise ValueError(f'routing is "learned" or "random", got {routing!r}')
        if enhance not in ("value", "input"):
            raise ValueError(f'enhance is "value" or "input", got {enhance!r}')
        options.setdefault("out_bias", True)
        super().__init__(features, **options)
        made = of_layers(options)
        self.enhancement = DepthwiseConv(features, enhancement_size, **made) if enhancement_size else None
        self.regions, self.topk, self.routing, self.enhance = regions, topk, routing, enhance
        self.scale = features**-0.5 if scale is None else scale

    @property
    def complexity(self) -> float:
        return 2.0  # each token still sees the fraction topk / regions^2 of all tokens

    def mix(self, x: jax.Array, tokens: Tokens) -> jax.Array:
        height, width = x.shape[1:3]
        if self.topk is not None:
            x, tokens = self._pad(x, tokens)
        return super().mix(x, tokens)[:, :height, :width]

    def _pad(self, x: jax.Array, tokens: Tokens) -> tuple[jax.Array, Tokens]:
        bottom, right = -x.shape[1] % self.regions, -x.shape[2] % self.regions
        x, mask = without_padding(x, tokens.mask), tokens.mask
        if bottom or right:
            x = jnp.pad(x, ((0, 0), (0, bottom), (0, right), (0, 0)))
            # If the caller gives a mask, the grid already has masked padding, and ours is masked too.
            mask = None if mask is None else jnp.pad(mask, ((0, 0), (0, bottom), (0, right)))
        return x, tokens.replace(mask=mask)

    def core(self, q: jax.Array, k: jax.Array, v: jax.Array, x: jax.Array, tokens: Tokens) -> jax.Array:
        (grid, _), mask = tokens.image(x.shape[1]), tokens.mask
        y = self._attend(q, k, v, mask, {}) if self.topk is None else self._routed(q, k, v, mask, grid)
        if self.enhancement is None:
            return y
        source = without_padding((x if self.enhance == "input" else v).reshape(x.shape), mask)
        return y.reshape(x.shape) + self.enhancement(source.reshape(x.shape[0], *grid, -1)).reshape(x.shape)

    def _attend(
        self, q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None, options: dict[str, Any]
    ) -> jax.Array:
        options = {"mask": None if mask is None else mask[:, None, None], "scale": self.scale, **options}
        if self.sowing(Diagnostic, "attention"):
            self.sow(Diagnostic, "attention", attention_weights(q, k, **options))
        return attention(q, k, v, **options)

    def _routed(
        self, q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None, grid: tuple[int, int]
    ) -> jax.Array:
        shape = q.shape
        q, k, v = (self._cut(a, grid) for a in (q, k, v))  # (batch, regions^2, tokens, heads, head_dim)
        region_mask = None if mask is None else self._cut(mask, grid)
        whole_q, whole_k = (a.reshape(*a.shape[:3], -1) for a in (q, k))
        routes = self.route(whole_q, whole_k, region_mask)  # (batch, regions^2, topk)
        self.sow(Diagnostic, "routes", routes)
        queries, keys, values = (a.reshape(shape) for a in (q, k, v))
        shown = None if region_mask is None else region_mask.reshape(shape[:2])
        y = self._attend(queries, keys, values, shown, {"routes": routes[:, None]})
        return self._join(y, grid)

    def route(self, q: jax.Array, k: jax.Array, region_mask: jax.Array | None = None) -> jax.Array:
        """Indices (batch, regions^2, topk) of the regions that each region attends to, for q, k (batch, regions^2,
        tokens, features).
        """
        assert self.topk is not None, "dense attention has no routes"
        count = self.regions**2
        if self.routing == "random":
            scores = jax.random.uniform(jax.random.key(0), (count, count))
            return jnp.broadcast_to(jax.lax.top_k(scores, self.topk)[1], (q.shape[0], count, self.topk))
        q, k = (jax.lax.stop_gradient(a).astype(jnp.float32) for a in (q, k))
        if region_mask is None:
            q, k = q.mean(2), k.mean(2)
        else:
            real = region_mask[..., None]
            q, k = ((a * real).sum(2) / jnp.maximum(real.sum(2), 1) for a in (q, k))
        scores = jnp.einsum("brc,bsc->brs", q * self.scale, k)
        if region_mask is not None:
            scores = jnp.where(region_mask.any(2)[:, None], scores, -jnp.inf)
        return jax.lax.top_k(scores, self.topk)[1]

    def _cut(self, x: jax.Array, grid: tuple[int, int]) -> jax.Array:
        """Groups the tokens (batch, length, ...) of a grid by regions: (batch, regions^2, tokens, ...)."""
        height, width = (side // self.regions for side in grid)
        x = x.reshape(x.shape[0], self.regions, height, self.regions, width, *x.shape[2:])
        return jnp.swapaxes(x, 2, 3).reshape(x.shape[0], self.regions**2, height * width, *x.shape[5:])

    def _join(self, x: jax.Array, grid: tuple[int, int]) -> jax.Array:
        """Inverse of :meth:`_cut`: reorders tokens (batch, length, ...) from the order of regions to that of the grid.
        """
        height, width = (side // self.regions for side in grid)
        cells = x.reshape(x.shape[0], self.regions, self.regions, height, width, *x.shape[2:])
        return jnp.swapaxes(cells, 2, 3).reshape(x.shape)
