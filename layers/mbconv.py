"""MBConv, the inverted bottleneck: MobileNetV2 (Sandler et al., 2018, arXiv:1801.04381), with squeeze-excitation as in
EfficientNet (Tan, Le, 2019, arXiv:1905.11946).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from layers.depthwise import DepthwiseConv
from layers.drop import DropPath
from layers.initializers import variance_scaling
from layers.linear import Linear
from layers.mlp import gelu
from layers.module import Module
from layers.norm import Norm, create_norm
from layers.pool import average_pool
from layers.squeeze_excite import SqueezeExcite
from primitives.exponential import silu


class MBConv(Module):
    """Norm, 1x1 convolution to more channels, 3x3 depth-wise convolution, channel gate, 1x1 convolution; residual.

        h = f(norm(expand(norm(x))));  h = excite(f(norm(depthwise(h))));  y = shortcut(x) + project(h)

    The depth-wise convolution has the stride and "same" padding; the shortcut of a stride of 2 averages 2x2 tokens, and
    a 1x1 convolution changes its number of features. The order is that of MaxViT (Tu et al., 2022, arXiv:2204.01697),
    section 3.3.
    """

    def __init__(
        self,
        in_features: int,
        features: int,
        *,
        strides: int = 1,
        expansion: float = 4.0,
        squeeze: float = 0.25,
        activation: Callable[[jax.Array], jax.Array] = gelu,
        norm: Norm = "batch",
        norm_epsilon: float = 1e-3,
        drop_path: float | None = None,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Args:
          expansion: features between the 1x1 convolutions / features of the output.
          squeeze: features between the two layers of squeeze-excitation / features of the output.
          drop_path: probability of dropping the branch; None for none.

        Raises:
          ValueError: strides other than 1 and 2.
        """
        if strides not in (1, 2):
            raise ValueError(f"MBConv has strides of 1 or 2, got {strides}")
        common = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        pointwise = {"kernel_init": variance_scaling(2.0, "fan_out", "normal"), **common}
        hidden = int(features * expansion)
        self.norm = create_norm(norm, in_features, epsilon=norm_epsilon, **common)
        self.expand = Linear(in_features, hidden, use_bias=False, **pointwise)
        self.expand_norm = create_norm(norm, hidden, epsilon=norm_epsilon, **common)
        init = variance_scaling(2.0, "fan_in", "normal")
        self.depthwise = DepthwiseConv(
            hidden, 3, strides=strides, padding="same", use_bias=False, kernel_init=init, **common
        )
        self.depthwise_norm = create_norm(norm, hidden, epsilon=norm_epsilon, **common)
        self.squeeze_excite = SqueezeExcite(hidden, int(features * squeeze), activation=silu, **common)
        self.project = Linear(hidden, features, **pointwise)
        self.shortcut = None if in_features == features else Linear(in_features, features, **pointwise)
        self.drop = None if drop_path is None else DropPath(drop_path, rngs=rngs)
        self.strides, self.activation = strides, activation

    def __call__(self, x: jax.Array) -> jax.Array:
        """(batch, height, width, in_features) to (batch, height / strides, width / strides, features), rounded up."""
        h = self.activation(self.expand_norm(self.expand(self.norm(x))))
        h = self.activation(self.depthwise_norm(self.depthwise(h)))
        h = self.project(self.squeeze_excite(h))
        h = h if self.drop is None else self.drop(h)
        x = average_pool(x, 2) if self.strides == 2 else x
        x = x if self.shortcut is None else self.shortcut(x)
        return x + h.astype(x.dtype)
