"""Efficient local attention: ELA, Efficient Local Attention for Deep Convolutional Neural Networks (Xu, Wan, 2024,
arXiv:2403.01123), a gate for each position and channel, computed from strips of the map.

    z^h = mean over columns of x        (rows, channels)          a^h = sigmoid(GN(conv(z^h)))
    z^w = mean over rows of x           (columns, channels)       a^w = sigmoid(GN(conv(z^w)))
    y = x * a^h * a^w

conv is a grouped 1-D convolution along the strip, without bias; GN is a group norm. The authors' code is not public.
What their text leaves open follows several independent implementations, which agree: one convolution and one norm serve
both strips, and the sizes are

    size     kernel    groups of the convolution    groups of the norm
    tiny     5         channels                     32
    base     7         channels                     16
    small    5         channels / 8                 16
    large    7         channels / 8                 16
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from layers.initializers import ones, variance_scaling, zeros
from layers.linear import Conv
from layers.module import Module
from suggestions import unknown

# Kernel, channels of a group of the convolution, groups of the norm.
SIZES = {"tiny": (5, 1, 32), "base": (7, 1, 16), "small": (5, 8, 16), "large": (7, 8, 16)}


class EfficientLocalAttention(Module):
    """Multiplies a map by a gate for each row and one for each column, channel by channel.

    Parameters: ``conv`` (1-D, in groups), ``scale`` and ``bias`` (features,) of the group norm.
    """

    def __init__(
        self,
        features: int,
        size: str = "base",
        *,
        epsilon: float = 1e-5,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Args:
          size: "tiny", "base", "small" or "large".
          epsilon: epsilon of the group norm.

        Raises:
          ValueError: an unknown size, or features that the groups do not divide.
        """
        if size not in SIZES:
            raise ValueError(unknown("size", size, SIZES))
        kernel, channels, groups = SIZES[size]
        if features % channels or features % groups:
            raise ValueError(
                f"{features} features can't be split into groups of {channels} and into {groups} groups, as the size "
                f"{size!r} requires"
            )
        init = variance_scaling(1 / 3, "fan_in", "uniform")
        shape: dict[str, Any] = {"feature_group_count": features // channels, "padding": kernel // 2}
        common: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.conv = Conv(features, features, (kernel,), use_bias=False, kernel_init=init, **shape, **common)
        self.scale = nnx.Param(ones(rngs.params(), (features,), param_dtype))
        self.bias = nnx.Param(zeros(rngs.params(), (features,), param_dtype))
        self.groups, self.epsilon = groups, epsilon

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (batch, height, width, features) to the same shape; means and norms are float32."""
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        rows, columns = (self._gate(jnp.mean(wide, axis)) for axis in (2, 1))
        return x * rows[:, :, None].astype(x.dtype) * columns[:, None].astype(x.dtype)

    def _gate(self, strip: jax.Array) -> jax.Array:
        """Gates (batch, length, features) of a strip of the same shape."""
        h = self.conv(strip).astype(strip.dtype)
        grouped = h.reshape(*h.shape[:2], self.groups, -1)
        mean = jnp.mean(grouped, (1, 3), keepdims=True)
        spread = jnp.mean(jnp.square(grouped - mean), (1, 3), keepdims=True)
        h = ((grouped - mean) * jax.lax.rsqrt(spread + self.epsilon)).reshape(h.shape)
        return jax.nn.sigmoid(h * self.scale[...].astype(h.dtype) + self.bias[...].astype(h.dtype))
