"""Efficient channel attention: ECA-Net (Q. Wang et al., CVPR 2020, arXiv:1910.03151), a channel gate with a handful of
parameters.

    y = x * sigmoid(w * mean(x))        mean over the map; w * is a 1-D convolution along the channels

One kernel w of k numbers for all channels, zeros beyond the first and the last, no bias. k is the integer part of
|log2(C) / gamma + beta / gamma|, plus 1 if that is even, and at least 3 (equation 12 with gamma = 2, beta = 1).
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from layers.initializers import create_initializer, variance_scaling
from layers.module import Module


class EfficientChannelAttention(Module):
    """Multiplies each channel by a gate of its own mean and its neighbors'; parameter ``kernel`` (kernel_size,)."""

    def __init__(
        self,
        features: int,
        kernel_size: int | None = None,
        *,
        gamma: float = 2.0,
        beta: float = 1.0,
        kernel_init: Any = variance_scaling(1 / 3, "fan_in", "uniform"),
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Args:
          kernel_size: number of channels that a gate depends on, odd; None computes it from ``features``, ``gamma`` and
            ``beta``.

        Raises:
          ValueError: an even kernel, which has no center.
        """
        if kernel_size is None:
            size = int(abs(math.log2(features) + beta) / gamma)
            kernel_size = max(size if size % 2 else size + 1, 3)
        if kernel_size % 2 == 0:
            raise ValueError(f"a gate's kernel needs a center: kernel_size must be odd, got {kernel_size}")
        kernel = create_initializer(kernel_init)(rngs.params(), (kernel_size, 1, 1), param_dtype)
        self.kernel = nnx.Param(kernel.reshape(kernel_size))
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (batch, height, width, features) to the same shape; means and gates are float32."""
        wide = jnp.promote_types(x.dtype, jnp.float32)
        means = jnp.mean(x.astype(wide), axis=(1, 2))
        reach, kernel = len(self.kernel) // 2, self.kernel[...].astype(wide)
        padded = jnp.pad(means, ((0, 0), (reach, reach)))
        mixed = sum(kernel[i] * padded[:, i : i + means.shape[1]] for i in range(len(kernel)))
        return x * jax.nn.sigmoid(mixed)[:, None, None].astype(x.dtype)
