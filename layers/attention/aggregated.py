"""Aggregated attention: TransNeXt, Robust Foveal Visual Perception for Vision Transformers (Shi, CVPR 2024,
arXiv:2311.17132), sections 3.1 to 3.4.

Each token of a map attends to its neighbors and to a pooled version of the whole map under one softmax:

    a_i = softmax([q_i K_near(i) + b, q_i K_pooled + B_i])      q_i = (unit(W_q x_i) + e) softplus(t) log(n_i)
    y_i = a_i [V_near(i), V_pooled] + (unit(W_q x_i) T + c) V_near(i)

Keys are unit vectors. e (a query embedding), t, b, T and c are learned per head; n_i is the number of keys of token i,
so that the entropy of the weights does not depend on the size of the map. Pooled tokens are LN(pool(gelu(W x))) and
share the key and value projections. B is computed by an MLP from the distances d = q - k of row and of column, in units
of an eighth of the pretraining map, transformed to sign(d) log2(1 + |d|) / 3.

Without pooling all tokens are keys and there is no separate neighborhood: y_i = softmax(q_i K + B_i) V.
"""

from __future__ import annotations

import math
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import numpy as np

from layers.attention.mixture_of_heads import HeadMixture
from layers.attention.projected import HeadOptions, of_projections
from layers.broadcast import widened
from layers.initializers import constant, truncated_normal
from layers.linear import BlockLinear, Linear
from layers.mixer import register_mixer, without_padding
from layers.mlp import gelu
from layers.module import parameter
from layers.norm import create_norm, unit
from layers.pool import adaptive_average_pool
from layers.tokens import Tokens
from pallas_kernels import attention, neighborhood_average, neighborhood_scores

LOW = -1e30
"""Logit of a missing key: finite, so that a row without keys has finite gradients."""


@register_mixer("aggregated")
class AggregatedAttention(HeadMixture):
    """Attention of a map's tokens to their neighbors and to a pooled map, under one softmax.

    Neighbors outside the map are masked. The pooled map averages real tokens only, and cells without any are masked.
    Its side is side / reduction, rounded down, at least 1; cells overlap if it does not divide evenly.

    Parameters: ``query``, ``key``, ``value``, ``out`` (linear), ``query_embedding`` (heads, head_dim), ``temperature``
    (heads,), ``offset_up``, ``offset_down`` (linear, the MLP of B); if the map is pooled, ``reduction`` (linear),
    ``reduction_norm``, ``near_bias`` b (heads, window^2), ``near`` (T and c, linear within each head); and those of
    :class:`HeadMixture` if heads are mixed.
    """

    layouts = ("grid",)
    paper = (44,)
    undecayed = ("query_embedding", "temperature", "near_bias", "offset_up", "offset_down")

    def __init__(
        self,
        features: int,
        *,
        window: int = 3,
        reduction: int = 2,
        grid: tuple[int, int] | None = None,
        shared: int | None = None,
        chosen: int | None = None,
        depth: int = 1,
        **options: Unpack[HeadOptions],
    ):
        """Args:
          window: side of the neighborhood in tokens, an odd number.
          reduction: factor by which pooling reduces each side of the map; 1 for no pooling.
          grid: rows and columns of the pretraining map, which scale the distances; default those of the input.
          shared, chosen, depth: mix the heads as in :class:`MixtureOfHeads`, if one of the first two is given.
          options: as in :class:`ProjectedAttention`.

        Raises:
          ValueError: features not divisible by num_heads, an even window, a reduction below 1, or more shared and
            chosen heads than ``num_heads``.
        """
        if window % 2 == 0 or reduction < 1:
            raise ValueError(f"window must be odd and reduction at least 1; got {window=} and {reduction=}")
        super().__init__(features, **options)
        heads, near, common = self.num_heads, window**2, of_projections(options)
        init = truncated_normal(0.02)
        self.query_embedding = parameter(init, (heads, self.head_dim), options)
        # softplus of it is 1 / 0.24.
        self.temperature = parameter(constant(math.log(math.expm1(1 / 0.24))), (heads,), options)
        self.offset_up, self.offset_down = Linear(2, 512, **common), Linear(512, heads, **common)
        if reduction > 1:
            self.reduction = Linear(features, features, **common)
            norm = {name: common[name] for name in ("dtype", "param_dtype", "rngs")}
            self.reduction_norm = create_norm("layer", features, epsilon=1e-5, **norm)
            self.near_bias = parameter(truncated_normal(0.0004), (heads, near), options)
            self.near = BlockLinear(features, heads, out_features=heads * near, **(common | {"kernel_init": init}))
        self.window, self.stride, self.grid = window, reduction, grid
        self.mix_heads(features, shared, chosen, depth, options)

    @property
    def complexity(self) -> float:
        return 2.0

    def core(self, q: jax.Array, k: jax.Array, v: jax.Array, x: jax.Array, tokens: Tokens) -> jax.Array:
        self.report_load(x, tokens.mask)
        attend = self._to_all if self.stride == 1 else self._aggregate
        return self.weighed(attend(unit(q), unit(k), v, x, tokens), x)

    def _to_all(self, q: jax.Array, k: jax.Array, v: jax.Array, x: jax.Array, tokens: Tokens) -> jax.Array:
        grid, mask = tokens.grid, tokens.mask
        assert grid is not None  # a mixer of maps
        count = jnp.full((1,), x.shape[1]) if mask is None else mask.sum(1)
        seen = None if mask is None else mask[:, None, None]
        bias = self._bias(grid, grid)
        return attention(self._asking(q, count[:, None]), k, v, bias=bias, mask=seen, scale=1.0)

    def _aggregate(self, q: jax.Array, k: jax.Array, v: jax.Array, x: jax.Array, tokens: Tokens) -> jax.Array:
        grid, batch = tokens.grid, x.shape[0]
        assert grid is not None
        mask = None if tokens.mask is None else tokens.mask.reshape(batch, *grid)

        def as_map(a: jax.Array) -> jax.Array:
            return a.reshape(a.shape[0], *grid, *a.shape[2:])

        around: dict[str, Any] = {"kernel_size": self.window, "border": "masked"}
        ones = jnp.ones((1, *grid, 1, 1), jnp.float32)
        real = neighborhood_scores(ones, ones if mask is None else mask.astype(ones.dtype)[..., None, None], **around)
        pooled, share = self._pooled(as_map(x), mask)
        size, kept = share.shape[1:], share.reshape(share.shape[0], -1) > 0
        count = real.sum(-1).reshape(real.shape[0], -1) + kept.sum(1, keepdims=True)
        asking = self._asking(q, count)
        scores = neighborhood_scores(as_map(asking), as_map(k), **around)
        scores = jnp.where(real > 0, scores + widened(self.near_bias[...]), LOW)
        pooled_k, pooled_v = self.key_value_heads(pooled)
        seen = None if mask is None else kept[:, None, None]
        found, total = attention(
            asking,
            unit(pooled_k),
            pooled_v.astype(v.dtype),
            bias=self._bias(grid, size),
            mask=seen,
            scale=1.0,
            return_lse=True,
        )
        total = as_map(jnp.maximum(total, LOW))
        normalizer = jnp.logaddexp(jax.nn.logsumexp(scores, -1), total)
        weights = jnp.exp(scores - normalizer[..., None])
        weights += self.near(q.reshape(*q.shape[:2], -1)).reshape(weights.shape)
        values = without_padding(as_map(v), None if mask is None else mask[..., None])
        y = neighborhood_average(weights, values, **around)
        y = y + as_map(found) * jnp.exp(total - normalizer)[..., None].astype(y.dtype)
        return y.reshape(q.shape)

    def _asking(self, q: jax.Array, count: jax.Array) -> jax.Array:
        """Scaled queries, from unit queries (batch, length, heads, head_dim) and their numbers of keys, ``count``
        (batch or 1, length or 1).
        """
        scale = jax.nn.softplus(widened(self.temperature[...]))
        factor = jnp.log(jnp.maximum(count, 1).astype(jnp.float32))[..., None] * scale
        return ((q + widened(self.query_embedding[...])) * factor[..., None]).astype(q.dtype)

    def _pooled(self, x: jax.Array, mask: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        """Pooled tokens (batch, length, features), and the real fraction of each, (batch or 1, rows, columns)."""
        size = tuple(max(side // self.stride, 1) for side in x.shape[1:3])
        means, share = adaptive_average_pool(without_padding(gelu(self.reduction(x)), mask), (size[0], size[1]), mask)
        return self.reduction_norm(means.reshape(x.shape[0], -1, x.shape[-1])), share

    def _bias(self, grid: tuple[int, int], size: tuple[int, ...]) -> jax.Array:
        """B, float32 (1, heads, tokens of the map, tokens of the pooled map), with sides ``grid`` and ``size``."""
        rows, columns = (
            _distances(*sides) for sides in zip(grid, size, grid if self.grid is None else self.grid, strict=True)
        )
        places = np.stack(np.meshgrid(rows[0], columns[0], indexing="ij"), -1)
        table = self.offset_down(jax.nn.relu(self.offset_up(jnp.asarray(places)))).astype(jnp.float32)
        bias = jnp.transpose(table, (2, 0, 1))[:, rows[1][:, None, :, None], columns[1][None, :, None, :]]
        return bias.reshape(1, self.num_heads, math.prod(grid), math.prod(size))


def _distances(side: int, pooled: int, pretrained: int) -> tuple[np.ndarray, np.ndarray]:
    """For one axis, the distinct distances between ``side`` tokens and the centers of ``pooled`` cells on the scale of
    B, float32, and the index of each pair's distance, (side, pooled).
    """
    part = np.arange(pooled)
    middles = (part * side // pooled - (-(part + 1) * side // pooled) - 1) / 2  # floor and ceil of adaptive pooling
    different, which = np.unique(np.arange(side)[:, None] - middles, return_inverse=True)
    scaled = 8 * different / max(pretrained - 1, 1)
    scaled = np.sign(scaled) * np.log2(np.abs(scaled) + 1) / 3
    return scaled.astype(np.float32), which.reshape(side, pooled)
