"""Context-mixing dynamic convolution ("ContMix") of OverLoCK (Lou and Yu, CVPR 2025, arXiv:2502.20087), section 3.3.

Each token's kernel weights its neighbors, and is computed from the similarity of the token to 7x7 regions of the whole
map. With G groups of channels,

    q = W_q x,  k = W_k pool7x7(context)                           queries of all tokens, keys of 49 regions
    kernels = W_p (q k^T s)                                        49 similarities to 5^2 + K^2 weights, for each group
    y = [sum_5x5 softmax(kernels_1 + B_1) v_1, sum_KxK softmax(kernels_2 + B_2) v_2]        v in two halves
    out = W_o BN(silu(BN(W_g h)) * SE(BN(W_m y) + BN(local(h))))

Windows move inward at the border, as in neighborhood attention, B are biases by offset, and local is a convolution with
a large kernel (:mod:`layers.large_kernel`). As a stand-alone mixer (the authors' contmix.py) h and the context are x
itself, and v = BN(W_v x). In OverLoCK the last channels of x are the context, queries come from the others, and h = v
is computed from both by a depth-wise 3x3 convolution, BN, GELU, W and a norm. All W but W_p and W_o are followed by
batch norms. The factor is s = (features / G)^-1/2, as in the code, though queries have half as many features.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from layers.depthwise import DepthwiseConv
from layers.initializers import truncated_normal, zeros
from layers.large_kernel import LargeKernelConvolution
from layers.linear import Linear
from layers.mixer import Mixer, register_mixer, without_padding
from layers.mlp import gelu
from layers.module import Diagnostic, Module
from layers.norm import BatchNorm, GlobalResponseNorm, of_real
from layers.patch import ConvNorm
from layers.pool import adaptive_average_pool, resize_bilinear
from layers.squeeze_excite import SqueezeExcite
from layers.tokens import Tokens
from pallas_kernels.neighborhood_attention import grid_of, neighborhood_average
from primitives.exponential import silu

PARTS = 7
"""The map is pooled to PARTS x PARTS regions, from which the keys are computed."""


class Fusion(Module):
    """The values, computed from tokens and their context together: ``response(out(gelu(norm(conv(x)))))``."""

    def __init__(self, features: int, out_features: int, *, kernel_init: Any, **common: Any):
        self.conv = DepthwiseConv(features, 3, kernel_init=kernel_init, **common)
        self.norm = BatchNorm(features, **common)
        self.out = Linear(features, out_features, kernel_init=kernel_init, **common)
        self.response = GlobalResponseNorm(out_features, **common)

    def __call__(self, x: jax.Array, mask: jax.Array | None) -> jax.Array:
        """Maps (batch, height, width, features) to (batch, height, width, out_features); masked tokens are zeros."""
        x = gelu(of_real(self.norm, self.conv(without_padding(x, mask)), mask))
        return self.response(self.out(x), mask)


@register_mixer("context_mixing")
class ContextMixingConvolution(Mixer):
    """Convolution of a map by kernels computed, for each token, from its similarity to all regions of the map.

    A map smaller than the kernel is resized to the kernel's size, and the output is average-pooled back, as in the
    authors' code. Masked tokens are excluded from all regions, windows and statistics.

    Parameters: ``query``, ``key``, ``value`` (or ``fusion``), ``mixed``, ``gate`` (linear layers with batch norms),
    ``kernels`` (W_p), ``small_bias``, ``large_bias`` (groups, 2 size - 1, 2 size - 1), ``local``, ``local_norm``,
    ``excite``, ``out_norm``, ``out``.
    """

    layouts = ("grid",)
    paper = (221,)
    undecayed = ("small_bias", "large_bias")

    def __init__(
        self,
        features: int,
        *,
        num_heads: int = 2,
        kernel_size: int = 7,
        small_kernel_size: int = 5,
        context_features: int = 0,
        merged: bool = False,
        kernel_init: Any = truncated_normal(0.02),
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Args:
          num_heads: half of the number of channel groups G.
          kernel_size, small_kernel_size: K, the side in tokens of the windows of one half of the channels, and the side
            for the other half.
          context_features: number of the features, the last ones, that are the context; with 0 the context is x itself.
          merged: whether ``local`` has the merged form.

        Raises:
          ValueError: features that can't be split over the groups, an even kernel size, or ``kernel_size`` below
            ``small_kernel_size``.
        """
        groups, width = 2 * num_heads, features - context_features
        if width < 1 or width % (2 * groups):
            raise ValueError(
                f"{width} features beside the context can't be split over two halves of {groups} groups (2 num_heads): "
                f"they must be a multiple of {2 * groups}"
            )
        for size in (kernel_size, small_kernel_size):
            if size % 2 == 0:
                raise ValueError(f"a kernel needs a center: its side must be an odd number of tokens, got {size}")
        if kernel_size < small_kernel_size:
            raise ValueError(f"kernel_size {kernel_size} is less than small_kernel_size {small_kernel_size}")
        common: dict[str, Any] = {"kernel_init": kernel_init, "dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}

        def unbiased(source: int, width: int, activation: Any = None, **changed: Any) -> ConvNorm:
            options = common | changed
            return ConvNorm(source, width, kernel_size=1, use_bias=False, activation=activation, **options)

        norm = functools.partial(BatchNorm, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.fusion = Fusion(features, width, **common) if context_features else None
        self.value = None if context_features else unbiased(width, width)
        self.query = unbiased(width, width // 2)
        # In float32: the larger the map, the less its regions' means differ, and the batch norm of 49 of them amplifies
        # what rounding leaves of their differences.
        wide = None if dtype is None else jnp.promote_types(dtype, jnp.float32)
        self.key = unbiased(context_features or width, width // 2, dtype=wide)
        self.kernels = Linear(PARTS**2, small_kernel_size**2 + kernel_size**2, **common)
        sides = (2 * small_kernel_size - 1, 2 * kernel_size - 1)
        self.small_bias, self.large_bias = (nnx.Param(zeros(None, (groups, s, s), param_dtype)) for s in sides)
        self.mixed = unbiased(width, width)
        self.local = LargeKernelConvolution(width, kernel_size=kernel_size, merged=merged, **common)
        self.local_norm = norm(width)
        excite = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.excite = SqueezeExcite(width, max(16, width // 8), activation=gelu, **excite)
        self.gate = unbiased(width, width, activation=silu)
        self.out_norm, self.out = norm(width), Linear(width, features, **common)
        self.groups, self.width, self.context_features = groups, width, context_features
        self.kernel_size, self.small_kernel_size = kernel_size, small_kernel_size

    @property
    def complexity(self) -> float:
        return 1.0

    def mix(self, x: jax.Array, tokens: Tokens) -> jax.Array:
        mask = tokens.mask
        x = without_padding(x, mask)
        h = x if self.fusion is None else without_padding(self.fusion(x, mask), mask)
        local = of_real(self.local_norm, self.local(h, mask), mask)
        y = self.mixed(self._mixed(x, h, mask), mask)
        y = self.gate(h, mask) * self.excite(y + local, mask)
        return self.out(of_real(self.out_norm, y, mask))

    def _mixed(self, x: jax.Array, h: jax.Array, mask: jax.Array | None) -> jax.Array:
        """The dynamic convolution of the values: (batch, height, width, width of h)."""
        grid = x.shape[1], x.shape[2]
        stretched = self._stretched(grid)
        if stretched != grid:
            x, h = resize_bilinear(x, stretched), resize_bilinear(h, stretched)
            mask = None if mask is None else resize_bilinear(mask[..., None].astype(jnp.float32), stretched)[..., 0] > 0
        values = h if self.value is None else without_padding(self.value(h, mask), mask)
        small, large = self._kernels(x, mask)
        self.sow(Diagnostic, "kernels", large)
        sides, found = (self.small_kernel_size, self.kernel_size), []
        for kernels, v, side in zip((small, large), jnp.split(values, 2, axis=-1), sides, strict=True):
            heads = v.reshape(*v.shape[:3], self.groups, -1)
            found.append(neighborhood_average(kernels, heads, kernel_size=side).reshape(v.shape))
        y = jnp.concatenate(found, axis=-1)
        return y if stretched == grid else adaptive_average_pool(y, grid)[0]

    def _stretched(self, grid: tuple[int, int]) -> tuple[int, int]:
        """The size at which a map is convolved: at least the kernel's, with about the map's aspect ratio."""
        (height, width), size = grid, self.kernel_size
        if min(grid) >= size:
            return grid
        if height < width:
            return size, max(int(size / height * width), size)
        return max(int(size / width * height), size), size

    def _kernels(self, x: jax.Array, mask: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        """Kernels of every token, float32 (batch, height, width, groups, neighbors), small and large."""
        own, context = (x, x) if self.fusion is None else jnp.split(x, [self.width], axis=-1)
        wide = context.astype(jnp.promote_types(context.dtype, jnp.float32))
        pooled, share = adaptive_average_pool(wide, (PARTS, PARTS), mask)
        real = None if mask is None else share > 0
        keys = without_padding(self.key(pooled, real), real).reshape(x.shape[0], PARTS**2, self.groups, -1)
        queries = self.query(own, mask) * (self.width / self.groups) ** -0.5
        queries = queries.reshape(*x.shape[:3], self.groups, -1)
        keys = keys.astype(queries.dtype)
        logits = self.kernels(jnp.einsum("bhwgc,blgc->bhwgl", queries, keys)).astype(jnp.float32)
        parts = jnp.split(logits, [self.small_kernel_size**2], axis=-1)
        tables = ((self.small_kernel_size, self.small_bias), (self.kernel_size, self.large_bias))
        weights = []
        for part, (side, table) in zip(parts, tables, strict=True):
            rows, columns = (axis.keys for axis in grid_of(x.shape[1:3], side))
            part = part + _by_offset(table[...].astype(jnp.float32), rows, columns)
            if mask is not None:
                seen = mask[:, rows[:, :, None, None], columns[None, None]]  # (batch, height, side, width, side)
                seen = jnp.moveaxis(seen, 2, 3).reshape(*x.shape[:3], 1, side**2)
                part = jnp.where(seen, part, jnp.finfo(jnp.float32).min)
                weights.append(jnp.where(seen, jax.nn.softmax(part, axis=-1), 0))
            else:
                weights.append(jax.nn.softmax(part, axis=-1))
        return weights[0], weights[1]


def _by_offset(table: jax.Array, rows: np.ndarray, columns: np.ndarray) -> jax.Array:
    """Biases (height, width, groups, neighbors) of the keys that each token sees along rows and columns, (length, side)
    each, from a table by their offsets (groups, 2 side - 1, 2 side - 1).
    """
    size, side = table.shape[-1], rows.shape[1]

    def chosen(keys: np.ndarray) -> np.ndarray:
        offset = keys - np.arange(len(keys))[:, None] + side - 1
        return (offset[..., None] == np.arange(size)).astype(np.float32)

    # Matrix products: the gradient of a lookup would scatter every token into a small table.
    by_row = jnp.einsum("gpq,hap->gqha", table, chosen(rows), precision="highest")
    found = jnp.einsum("gqha,wbq->hwgab", by_row, chosen(columns), precision="highest")
    return found.reshape(*found.shape[:3], -1)
