"""BiFormer: Vision Transformer with Bi-Level Routing Attention (Zhu et al., CVPR 2023).

The grid is cut into S x S regions. Each region attends only to the k regions whose mean keys score
highest against its mean query:

    Q_r, K_r = region means of Q, K;   A_r = Q_r K_r^T;   I_r = top-k indices of the rows of A_r
    O = Attention(Q, gather(K, I_r), gather(V, I_r)) + LCE(V)

(eqs. 3 to 7; LCE is a depth-wise 5x5 convolution, the local context enhancement.)
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from layers.depthwise import DepthwiseConv
from layers.initializers import truncated_normal
from layers.linear import Linear
from layers.mixer import Mixer, finite_padding, register_mixer
from layers.module import Diagnostic
from layers.tokens import Tokens
from pallas_kernels import attention, attention_weights


@register_mixer("bilevel_routing")
class BilevelRoutingAttention(Mixer):
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
        num_heads: int,
        regions: int = 7,
        topk: int | None = 4,
        routing: str = "learned",
        scale: float | None = None,
        use_bias: bool = True,
        enhancement_size: int = 5,
        enhance: str = "value",
        kernel_init: Any = truncated_normal(0.02),
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Args:
          regions: S, regions along each side of the grid.
          topk: regions each region attends to; None attends to all tokens, without regions.
          routing: "learned", or "random": a fixed random choice of regions, the control that shows
            what the routing is worth.
          scale: of the scores, of tokens and of regions. Default features ** -0.5, the authors' choice.
          use_bias: of the projections of queries, keys and values.
          enhancement_size: of the depth-wise convolution, 0 for none.
          enhance: what the convolution sees: "value", or "input" (the authors' dense last stage).

        Raises:
          ValueError: heads that don't divide the features, or options out of range.
        """
        if features % num_heads:
            raise ValueError(f"{features} features can't be split over {num_heads} heads")
        if topk is not None and not 1 <= topk <= regions**2:
            raise ValueError(f"topk must lie between 1 and the {regions**2} regions, got {topk}")
        if routing not in ("learned", "random"):
            raise ValueError(f'routing is "learned" or "random", got {routing!r}')
        if enhance not in ("value", "input"):
            raise ValueError(f'enhance is "value" or "input", got {enhance!r}')
        common = {"kernel_init": kernel_init, "dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.query = Linear(features, features, use_bias=use_bias, **common)
        self.key = Linear(features, features, use_bias=use_bias, **common)
        self.value = Linear(features, features, use_bias=use_bias, **common)
        self.out = Linear(features, features, **common)
        self.enhancement = DepthwiseConv(features, enhancement_size, dtype=dtype, param_dtype=param_dtype, rngs=rngs) if enhancement_size else None
        self.num_heads, self.regions, self.topk, self.routing, self.enhance = num_heads, regions, topk, routing, enhance
        self.scale = features**-0.5 if scale is None else scale

    @property
    def complexity(self) -> float:
        return 2.0  # each token still sees the share topk / regions^2 of all tokens

    def mix(self, x: jax.Array, tokens: Tokens) -> jax.Array:
        mask = tokens.mask
        height, width = x.shape[1:3]
        x = finite_padding(x, mask)
        if self.topk is not None:
            x, mask = self._pad(x, mask)
        q, k, v = self.query(x), self.key(x), self.value(x)
        y = self._dense(q, k, v, mask) if self.topk is None else self._routed(q, k, v, mask)
        if self.enhancement is not None:
            source = x if self.enhance == "input" else v
            y = y + self.enhancement(source if mask is None else jnp.where(mask[..., None], source, 0))
        return self.out(y)[:, :height, :width]

    def _pad(self, x: jax.Array, mask: jax.Array | None) -> tuple[jax.Array, jax.Array | None]:
        bottom, right = -x.shape[1] % self.regions, -x.shape[2] % self.regions
        if bottom or right:
            x = jnp.pad(x, ((0, 0), (0, bottom), (0, right), (0, 0)))
            # With a mask of the user's own the grid has real padding already, and ours joins it.
            mask = None if mask is None else jnp.pad(mask, ((0, 0), (0, bottom), (0, right)))
        return (x if mask is None else jnp.where(mask[..., None], x, 0)), mask

    def _dense(self, q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None) -> jax.Array:
        tokens = [a.reshape(a.shape[0], -1, self.num_heads, a.shape[-1] // self.num_heads) for a in (q, k, v)]
        key_mask = None if mask is None else mask.reshape(mask.shape[0], 1, 1, -1)
        if self.sowing(Diagnostic, "attention"):
            self.sow(Diagnostic, "attention", attention_weights(*tokens[:2], mask=key_mask, scale=self.scale))
        return attention(*tokens, mask=key_mask, scale=self.scale).reshape(q.shape)

    def _routed(self, q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None) -> jax.Array:
        assert self.topk is not None
        (batch, *_), heads, shape = q.shape, self.num_heads, q.shape
        q, k, v = (self._cut(a) for a in (q, k, v))  # (batch, regions^2, tokens, features)
        region_mask = None if mask is None else self._cut(mask[..., None])[..., 0]
        routes = self.route(q, k, region_mask)  # (batch, regions^2, topk)
        self.sow(Diagnostic, "routes", routes)
        queries, keys, values = (a.reshape(batch, -1, heads, shape[-1] // heads) for a in (q, k, v))
        routes, key_mask = routes[:, None], None if region_mask is None else region_mask.reshape(batch, 1, 1, -1)
        if self.sowing(Diagnostic, "attention"):
            self.sow(Diagnostic, "attention", attention_weights(queries, keys, mask=key_mask, routes=routes, scale=self.scale))
        y = attention(queries, keys, values, mask=key_mask, routes=routes, scale=self.scale)
        return self._join(y.reshape(q.shape), shape)

    def route(self, q: jax.Array, k: jax.Array, region_mask: jax.Array | None = None) -> jax.Array:
        """Indices (batch, regions^2, topk) of the regions that each region attends to, for q, k (batch, regions^2, tokens, features)."""
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

    def _cut(self, x: jax.Array) -> jax.Array:
        batch, height, width, features = x.shape
        x = x.reshape(batch, self.regions, height // self.regions, self.regions, width // self.regions, features)
        return jnp.swapaxes(x, 2, 3).reshape(batch, self.regions**2, -1, features)

    def _join(self, x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        batch, height, width, features = shape
        x = x.reshape(batch, self.regions, self.regions, height // self.regions, width // self.regions, features)
        return jnp.swapaxes(x, 2, 3).reshape(shape)
