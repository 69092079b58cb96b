"""Neighborhood attention as a mixer: Neighborhood Attention Transformer (Hassani et al., 2023, arXiv:2204.07143), with
the dilation of arXiv:2209.15001 and the strides of Generalized Neighborhood Attention (2025, arXiv:2504.16922).

    y_i = softmax_j(q_i k_j / sqrt(d) + b[j - i]) v_j        over the window of tokens j around i
"""

from __future__ import annotations

from typing import Unpack

import jax

from layers.attention.projected import HeadOptions, ProjectedAttention
from layers.initializers import truncated_normal
from layers.mixer import register_mixer
from layers.module import parameter
from layers.tokens import Tokens
from pallas_kernels import neighborhood_attention


@register_mixer("neighborhood")
class NeighborhoodAttention(ProjectedAttention):
    """Attention of each token of a map to the window around it; at borders the window shifts inward.

    On a map smaller than the (dilated) window, the window shrinks to the map. For windows of a sequence use
    :class:`MultiHeadAttention` (``window=``).

    Parameters: ``query``, ``key``, ``value``, ``out`` (linear), and ``bias`` (heads, 2 window - 1, 2 window - 1) if
    enabled.
    """

    layouts = ("grid",)
    paper = (218,)
    weighs_values = True
    undecayed = ("bias",)

    def __init__(
        self,
        features: int,
        *,
        window: int = 7,
        stride: int = 1,
        dilation: int = 1,
        bias: bool = False,
        **options: Unpack[HeadOptions],
    ):
        """Args:
          window, stride, dilation: along each axis, as in :func:`pallas_kernels.neighborhood_attention`.
          bias: whether to add a learned bias per offset.
          options: as in :class:`ProjectedAttention`.

        Raises:
          ValueError: features not divisible by num_heads, or a stride that does not fit the window or its bias.
        """
        if not 1 <= stride <= window or (bias and stride > 1):
            raise ValueError(f"a stride is between 1 and window={window}, and 1 with a bias; got {stride}")
        super().__init__(features, **options)
        shape = (self.num_heads, 2 * window - 1, 2 * window - 1)
        self.bias = parameter(truncated_normal(0.02), shape, options) if bias else None
        self.window, self.stride, self.dilation = window, stride, dilation

    @property
    def complexity(self) -> float:
        return 1.0

    def core(self, q: jax.Array, k: jax.Array, v: jax.Array, x: jax.Array, tokens: Tokens) -> jax.Array:
        grid = tokens.grid
        assert grid is not None  # a mixer of maps
        window = tuple(min(self.window, max(size // self.dilation, 1)) for size in grid)
        bias = None if self.bias is None else self.bias[...]
        for axis, size in enumerate(window):
            if bias is not None:
                bias = jax.lax.slice_in_dim(bias, self.window - size, self.window + size - 1, axis=axis + 1)
        y = neighborhood_attention(
            *(a.reshape(a.shape[0], *grid, *a.shape[2:]) for a in (q, k, v)),
            kernel_size=window,
            stride=tuple(min(self.stride, size) for size in window),
            dilation=tuple(min(self.dilation, size) for size in grid),
            bias=bias,
            mask=None if tokens.mask is None else tokens.mask.reshape(tokens.mask.shape[0], *grid),
        )
        return y.reshape(q.shape)
