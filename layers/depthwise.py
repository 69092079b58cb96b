"""Depth-wise convolution over a grid, as a layer and as a token mixer."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from layers.initializers import create_initializer, truncated_normal, variance_scaling, zeros
from layers.mixer import Mixer, register_mixer, without_padding
from layers.module import Module
from layers.tokens import Tokens
from pallas_kernels import depthwise_convolution
from pallas_kernels.depthwise_convolution import Padding


class DepthwiseConv(Module):
    """Depth-wise 2-D convolution with bias; parameters ``kernel`` (size, size, 1, features) and ``bias``.

    The default ``padding`` gives each token an output: dilation * (kernel_size // 2) on each side.
    """

    def __init__(
        self,
        features: int,
        kernel_size: int,
        *,
        strides: int = 1,
        dilation: int = 1,
        padding: Padding = None,
        use_bias: bool = True,
        kernel_init: Any = variance_scaling(1 / 3, "fan_in", "uniform"),
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Args:
        kernel_size: tokens along each side of the kernel.
        strides, dilation: stride and dilation along both sides.
        padding: zeros around the map, or the name of a rule; see the class.
        use_bias: whether there is a bias.
        """
        self.kernel = nnx.Param(
            create_initializer(kernel_init)(rngs.params(), (kernel_size, kernel_size, 1, features), param_dtype)
        )
        self.bias = nnx.Param(zeros(rngs.params(), (features,), param_dtype)) if use_bias else None
        side = dilation * (kernel_size // 2)
        around: Padding = ((side, side), (side, side))
        self.padding = around if padding is None and dilation > 1 else padding
        self.strides, self.dilation, self.dtype = strides, dilation, dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (batch, height, width, features) to (batch, height', width', features)."""
        dtype = self.dtype or jnp.promote_types(x.dtype, self.kernel.dtype)
        bias = None if self.bias is None else self.bias[...].astype(dtype)
        return depthwise_convolution(
            x.astype(dtype),
            self.kernel[...].astype(dtype),
            bias,
            strides=self.strides,
            dilation=self.dilation,
            padding=self.padding,
        )


@register_mixer("depthwise_convolution")
class DepthwiseConvolution(Mixer):
    """Depth-wise convolution of a grid, one kernel per channel: the mixer of ConvNeXt (Liu et al., 2022,
    arXiv:2201.03545).

    Tokens mix with their neighbors up to half the kernel away, by weights that do not depend on the input. Masked
    tokens count as zeros, like positions beyond the grid.
    """

    layouts = ("grid",)

    def __init__(
        self,
        features: int,
        *,
        kernel_size: int = 7,
        use_bias: bool = True,
        kernel_init: Any = truncated_normal(0.02),
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Args:
        kernel_size: tokens along each side of the kernel, an odd number.

        Raises:
          ValueError: an even size, which has no center.
        """
        if kernel_size % 2 == 0:
            raise ValueError(f"the kernel of a mixer needs a center: kernel_size must be odd, got {kernel_size}")
        common = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.conv = DepthwiseConv(features, kernel_size, use_bias=use_bias, kernel_init=kernel_init, **common)

    @property
    def complexity(self) -> float:
        return 1.0

    def mix(self, x: jax.Array, tokens: Tokens) -> jax.Array:
        return self.conv(without_padding(x, tokens.mask))
