"""Depth-wise convolution over a grid, as a layer."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from layers.initializers import create_initializer, variance_scaling, zeros
from layers.module import Module
from pallas_kernels import depthwise_convolution
from pallas_kernels.depthwise_convolution import Padding


class DepthwiseConv(Module):
    """Depth-wise 2-D convolution with bias; parameters ``kernel`` (size, size, 1, features) and ``bias``."""

    def __init__(
        self,
        features: int,
        kernel_size: int,
        *,
        strides: int = 1,
        padding: Padding = None,
        use_bias: bool = True,
        kernel_init: Any = variance_scaling(1 / 3, "fan_in", "uniform"),
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.kernel = nnx.Param(create_initializer(kernel_init)(rngs.params(), (kernel_size, kernel_size, 1, features), param_dtype))
        self.bias = nnx.Param(zeros(rngs.params(), (features,), param_dtype)) if use_bias else None
        self.strides, self.padding, self.dtype = strides, padding, dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (batch, height, width, features) to (batch, height', width', features)."""
        dtype = self.dtype or jnp.promote_types(x.dtype, self.kernel.dtype)
        bias = None if self.bias is None else self.bias[...].astype(dtype)
        return depthwise_convolution(x.astype(dtype), self.kernel[...].astype(dtype), bias, strides=self.strides, padding=self.padding)
