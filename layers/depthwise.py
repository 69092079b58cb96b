"""Depth-wise convolution over a grid, by shifted additions.

Each tap of the kernel is one multiply-add of a shifted view. XLA fuses the taps into one pass; its
own grouped convolution is 10 to 50 times slower on a CPU.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from layers.initializers import variance_scaling, zeros
from layers.module import Module
from pallas_kernels import operations


def depthwise_convolution(x: jax.Array, kernel: jax.Array, *, strides: int = 1, padding: tuple[tuple[int, int], tuple[int, int]] | None = None) -> jax.Array:
    """Convolves every channel with its own kernel.

    Args:
      x: (batch, height, width, channels).
      kernel: (kernel_height, kernel_width, 1, channels), the layout of a grouped ``nnx.Conv``.
      strides: step between outputs, both axes.
      padding: zeros before and after each axis; default half the kernel, which keeps the size at stride 1.

    Returns:
      (batch, out_height, out_width, channels).
    """
    rows, columns = kernel.shape[:2]
    padding = padding or ((rows // 2, rows // 2), (columns // 2, columns // 2))
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    height, width = ((x.shape[axis] - size) // strides + 1 for axis, size in ((1, rows), (2, columns)))
    out = None
    with operations.multiply_adds():
        for i in range(rows):
            for j in range(columns):
                tap = x[:, i : i + (height - 1) * strides + 1 : strides, j : j + (width - 1) * strides + 1 : strides] * kernel[i, j, 0]
                out = tap if out is None else out + tap
    assert out is not None
    return out


class DepthwiseConv(Module):
    """Depth-wise 2-D convolution with bias; parameters ``kernel`` (size, size, 1, features) and ``bias``."""

    def __init__(
        self,
        features: int,
        kernel_size: int,
        *,
        strides: int = 1,
        padding: tuple[tuple[int, int], tuple[int, int]] | None = None,
        use_bias: bool = True,
        kernel_init: Any = variance_scaling(1 / 3, "fan_in", "uniform"),
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.kernel = nnx.Param(kernel_init(rngs.params(), (kernel_size, kernel_size, 1, features), param_dtype))
        self.bias = nnx.Param(zeros(rngs.params(), (features,), param_dtype)) if use_bias else None
        self.strides, self.padding, self.dtype = strides, padding, dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (batch, height, width, features) to (batch, height', width', features)."""
        dtype = self.dtype or jnp.promote_types(x.dtype, self.kernel.dtype)
        y = depthwise_convolution(x.astype(dtype), self.kernel[...].astype(dtype), strides=self.strides, padding=self.padding)
        return y if self.bias is None else y + self.bias[...].astype(dtype)
