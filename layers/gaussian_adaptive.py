"""Gaussian adaptive attention: Gaussian Adaptive Attention is All You Need (Ioannides et al., 2024, arXiv:2401.11143),
section 3.

    w_i ~ prod_k exp(-((x_i - mean - delta_k) / sd)^2 / (2 c_k^2)) / sqrt(2 pi c_k^2)        y_i = x_i w_i / sum_j w_j

The mean, the unbiased standard deviation sd and the sum are taken for each feature over the tokens, or for each token
over its features. Each head has its own part of that axis and its own K offsets delta and widths c: 2 K numbers. There
are no projections: the gate measures how typical each value is.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from layers.broadcast import widened
from layers.initializers import Normal, Transformed, zeros
from layers.mixer import Mixer, register_mixer, without_padding
from layers.tokens import Tokens

EPSILON = 1e-8


@register_mixer("gaussian_adaptive_attention")
class GaussianAdaptiveAttention(Mixer):
    """Multiplies each value by its product of normal densities, normalized to sum to 1 along an axis.

    With padding, statistics and sums are over the real tokens of a row, which are split between the heads; the authors'
    code counts padding in the number of values.

    Parameters: ``offset`` and ``width`` (heads, gaussians).
    """

    honors = frozenset({"mask"})
    paper = (55,)
    undecayed = ("offset", "width")

    def __init__(
        self,
        features: int,
        *,
        num_heads: int,
        gaussians: int = 4,
        axis: Literal["length", "features"] = "length",
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Args:
          num_heads: number of parts of the axis; the last part also takes the remainder.
          gaussians: K.
          axis: "length" normalizes over the tokens for each feature, "features" over the features of each token.

        Raises:
          ValueError: an unknown axis, no gaussian, or more heads than features on their axis.
        """
        if axis not in ("length", "features"):
            raise ValueError(f'axis={axis!r} is not known: "length" or "features"')
        if gaussians < 1:
            raise ValueError(f"there must be at least one gaussian, got {gaussians}")
        if axis == "features" and num_heads > features:
            raise ValueError(f"{features} features can't be split over {num_heads} heads")
        shape = (num_heads, gaussians)
        self.offset = nnx.Param(zeros(rngs.params(), shape, param_dtype))
        self.width = nnx.Param(Transformed("exp", Normal(1.0))(rngs.params(), shape, param_dtype))
        self.num_heads, self.axis, self.dtype = num_heads, axis, dtype

    @property
    def complexity(self) -> float:
        return 1.0

    def mix(self, x: jax.Array, tokens: Tokens) -> jax.Array:
        wide = without_padding(x.astype(jnp.promote_types(x.dtype, jnp.float32)), tokens.mask)
        if self.axis == "features":
            weights = self._weights(wide, self._members(x.shape[2], jnp.full((len(x), 1), x.shape[2])))
        else:
            real = jnp.ones(x.shape[:2], bool) if tokens.mask is None else tokens.mask
            members = self._members(x.shape[1], real.sum(1, keepdims=True)) & real[..., None]
            weights = jnp.swapaxes(self._weights(jnp.swapaxes(wide, 1, 2), members), 1, 2)
        return (wide * weights).astype(self.dtype or x.dtype)

    def _members(self, size: int, count: jax.Array) -> jax.Array:
        """Bool (batch, size, heads): the head of each entry of an axis, whose first ``count`` entries are real."""
        head = jnp.minimum(jnp.arange(size) // jnp.maximum(count // self.num_heads, 1), self.num_heads - 1)
        return head[..., None] == jnp.arange(self.num_heads)

    def _weights(self, x: jax.Array, members: jax.Array) -> jax.Array:
        """The normalized weight of each entry of the last axis of ``x`` (batch, rows, size), which belongs to one head
        of ``members`` (batch, size, heads) or to none.
        """
        part = members.astype(x.dtype)

        def total(values: jax.Array) -> jax.Array:
            """Sums (batch, rows, heads) over the entries of each head."""
            return jnp.einsum("brs,bsh->brh", values, part)

        def spread(values: jax.Array) -> jax.Array:
            """Values per head (batch or 1, rows or 1, heads), repeated for the entries of each head."""
            return jnp.einsum("brh,bsh->brs", jnp.broadcast_to(values, (len(x), *values.shape[1:])), part)

        number = jnp.sum(part, 1)[:, None]
        centered = x - spread(total(x) / jnp.maximum(number, 1))
        inverse = jax.lax.rsqrt(total(jnp.square(centered)) / jnp.maximum(number - 1, 1) + EPSILON)
        logarithm = jnp.zeros_like(x)
        for k in range(self.offset.shape[1]):
            offset, width = widened(self.offset[...][None, None, :, k]), widened(self.width[...][None, None, :, k])
            y = (centered - spread(offset)) * spread(inverse / width)
            logarithm -= 0.5 * jnp.square(y) + spread(jnp.log(jnp.abs(width)) + 0.5 * math.log(2 * math.pi))
        # All densities may underflow float32. The authors' code bounds their sum from below by epsilon.
        beside = jnp.where(members[:, None], logarithm[..., None], -jnp.inf)
        highest = jax.lax.stop_gradient(jnp.maximum(jnp.max(beside, axis=2), -1e30))
        sums = highest + jnp.log(jnp.maximum(total(jnp.exp(logarithm - spread(highest))), 1e-30))
        return jnp.exp(logarithm - spread(jnp.maximum(sums, math.log(EPSILON)))) * jnp.any(members, -1)[:, None]
