"""From pixels to tokens: patch embedding and convolutional stems."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from layers.broadcast import broadcast
from layers.initializers import create_initializer, truncated_normal, variance_scaling, zeros
from layers.linear import Conv
from layers.mlp import gelu
from layers.module import Module
from layers.norm import Norm, create_norm


class PatchEmbed(Module):
    """Cuts an image into patches and maps each to a token: a convolution whose stride is its size, computed as one matrix product.

    Parameters: ``kernel`` (patch, patch, channels, features), ``bias``.
    """

    def __init__(
        self,
        patch_size: int,
        in_channels: int,
        features: int,
        *,
        use_bias: bool = True,
        kernel_init: Any = truncated_normal(0.02),
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.kernel = nnx.Param(create_initializer(kernel_init)(rngs.params(), (patch_size, patch_size, in_channels, features), param_dtype))
        self.bias = nnx.Param(zeros(rngs.params(), (features,), param_dtype)) if use_bias else None
        self.patch_size, self.dtype = patch_size, dtype

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the tokens of an image.

        Raises:
          ValueError: the patch does not divide the image.
        """
        p = self.patch_size
        if height % p or width % p:
            raise ValueError(f"an image of {height}x{width} can't be cut into {p}x{p} patches: both sides must be divisible by {p}")
        return height // p, width // p

    def __call__(self, images: jax.Array) -> jax.Array:
        """Maps (batch, height, width, channels) to (batch, height / patch, width / patch, features).

        Raises:
          ValueError: the patch does not divide the image, or the number of channels is another.
        """
        batch, height, width, channels = images.shape
        p = self.patch_size
        self.grid(height, width)
        if channels != self.kernel.shape[2]:
            raise ValueError(f"the model takes images of {self.kernel.shape[2]} channels, got {channels}")
        dtype = self.dtype or jnp.promote_types(images.dtype, self.kernel.dtype)
        patches = images.reshape(batch, height // p, p, width // p, p, channels)
        patches = jnp.swapaxes(patches, 2, 3).reshape(batch, height // p, width // p, p * p * channels)
        y = patches.astype(dtype) @ self.kernel[...].reshape(p * p * channels, -1).astype(dtype)
        return y if self.bias is None else y + broadcast(self.bias[...], y.shape, dtype)


class ConvNorm(Module):
    """Dense convolution, then a norm, then an activation if there is one.

    ``padding`` None is half the kernel on each side; "SAME" is TensorFlow's, with the odd zero at the end; a number is that many
    zeros on each side.
    """

    def __init__(
        self,
        in_features: int,
        features: int,
        *,
        kernel_size: int = 3,
        strides: int = 1,
        padding: Literal["SAME"] | int | None = None,
        norm: Norm = "batch",
        norm_epsilon: float = 1e-5,
        activation: Callable[[jax.Array], jax.Array] | None = None,
        use_bias: bool = True,
        kernel_init: Any = variance_scaling(2.0, "fan_out", "truncated_normal"),
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        padding = kernel_size // 2 if padding is None else padding
        self.conv = Conv(
            in_features,
            features,
            (kernel_size, kernel_size),
            strides=strides,
            padding=padding if isinstance(padding, str) else ((padding, padding), (padding, padding)),
            use_bias=use_bias,
            kernel_init=create_initializer(kernel_init),
            bias_init=zeros,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        self.norm = create_norm(norm, features, epsilon=norm_epsilon, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.activation = activation

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (batch, height, width, in_features) to (batch, height / strides, width / strides, features), rounded
        up for the default padding, and down for 0 where the kernel is as large as the strides."""
        x = self.norm(self.conv(x))
        return x if self.activation is None else self.activation(x)


class ConvStem(nnx.List):
    """3x3 convolutions of stride 2, each halving the image and followed by a norm; all but the last by an activation.

    ``widths`` gives their features: two of them make tokens of 4x4 pixels.
    """

    def __init__(
        self,
        in_channels: int,
        widths: tuple[int, ...],
        *,
        norm: Norm = "batch",
        activation: Callable[[jax.Array], jax.Array] = gelu,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        sizes = (in_channels, *widths)
        last = len(widths) - 1
        super().__init__(
            [
                ConvNorm(
                    sizes[i], sizes[i + 1], strides=2, norm=norm, activation=None if i == last else activation, dtype=dtype, param_dtype=param_dtype, rngs=rngs
                )
                for i in range(len(widths))
            ]
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (batch, height, width, channels) to (batch, height / 2^n, width / 2^n, widths[-1]), rounded up."""
        for layer in self:
            x = layer(x)
        return x
