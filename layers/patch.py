"""From pixels to tokens: patch embedding and convolutional stems."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from layers.broadcast import broadcast, widened
from layers.initializers import create_initializer, truncated_normal, variance_scaling, zeros
from layers.linear import Conv, Linear, multiplied
from layers.mlp import gelu
from layers.module import Module
from layers.norm import BatchNorm, Norm, create_norm, of_real
from layers.sequential import Sequential


class PatchEmbed(Module):
    """Cuts an image into patches and maps each to a token: a convolution whose stride is its size, computed as one
    matrix product.

    Parameters: ``kernel`` (patch, patch, channels, features), ``bias`` (features,), and ``norm.*`` if there is a norm.
    """

    def __init__(
        self,
        patch_size: int,
        in_channels: int,
        features: int,
        *,
        use_bias: bool = True,
        norm: Norm | None = None,
        norm_epsilon: float = 1e-5,
        kernel_init: Any = truncated_normal(0.02),
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Args:
        patch_size: side of a patch, pixels.
        in_channels: channels of the images.
        norm, norm_epsilon: norm of the tokens; None for none.
        """
        self.kernel = nnx.Param(
            create_initializer(kernel_init)(rngs.params(), (patch_size, patch_size, in_channels, features), param_dtype)
        )
        self.bias = nnx.Param(zeros(rngs.params(), (features,), param_dtype)) if use_bias else None
        norms = {"epsilon": norm_epsilon, "dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.norm = None if norm is None else create_norm(norm, features, **norms)
        self.patch_size, self.dtype = patch_size, dtype

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the tokens of an image.

        Raises:
          ValueError: the patch does not divide the image.
        """
        p = self.patch_size
        if height % p or width % p:
            raise ValueError(
                f"an image of {height}x{width} can't be cut into {p}x{p} patches: both sides must be divisible by {p}"
            )
        return height // p, width // p

    def __call__(self, images: jax.Array) -> jax.Array:
        """Maps (batch, height, width, channels) to (batch, height / patch, width / patch, features).

        Raises:
          ValueError: the patch does not divide the image, or the image has another number of channels than the kernel.
        """
        batch, height, width, channels = images.shape
        p = self.patch_size
        self.grid(height, width)
        if channels != self.kernel.shape[2]:
            raise ValueError(f"the model takes images of {self.kernel.shape[2]} channels, got {channels}")
        dtype = self.dtype or jnp.promote_types(images.dtype, self.kernel.dtype)
        patches = images.reshape(batch, height // p, p, width // p, p, channels)
        patches = jnp.swapaxes(patches, 2, 3).reshape(batch, height // p, width // p, p * p * channels)
        y = multiplied(patches.astype(dtype), self.kernel[...].reshape(p * p * channels, -1).astype(dtype))
        y = y if self.bias is None else y + broadcast(self.bias[...], y.shape, dtype)
        return y if self.norm is None else self.norm(y)


class PatchMerging(Module):
    """Merges 2x2 neighboring tokens: their features are concatenated in the order (0, 0), (1, 0), (0, 1), (1, 1) of row
    and column and mapped by a linear layer without bias, with the norm before it (Swin) or after it (Swin v2). A grid
    of odd sides is padded with zeros.

    Swin Transformer (Liu et al., 2021, arXiv:2103.14030), section 3.1. Parameters: ``norm``, ``reduction`` (linear).
    """

    def __init__(
        self,
        in_features: int,
        features: int,
        *,
        norm: Norm = "layer",
        norm_epsilon: float = 1e-5,
        norm_first: bool = True,
        kernel_init: Any = truncated_normal(0.02),
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Args:
        norm, norm_epsilon: the norm.
        norm_first: whether the norm is before the linear layer.
        """
        common = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.norm = create_norm(norm, 4 * in_features if norm_first else features, epsilon=norm_epsilon, **common)
        self.reduction = Linear(4 * in_features, features, use_bias=False, kernel_init=kernel_init, **common)
        self.norm_first = norm_first

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (batch, height, width, in_features) to (batch, height / 2, width / 2, features), rounded up."""
        x = jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0)))
        batch, height, width, features = x.shape
        x = x.reshape(batch, height // 2, 2, width // 2, 2, features).transpose(0, 1, 3, 4, 2, 5)
        x = x.reshape(batch, height // 2, width // 2, 4 * features)
        return self.reduction(self.norm(x)) if self.norm_first else self.norm(self.reduction(x))


def soft_split_grid(height: int, width: int, size: int, stride: int, padding: int) -> tuple[int, int]:
    """Rows and columns of the tokens of :func:`soft_split`.

    Raises:
      ValueError: a map smaller than a window.
    """
    if min(height, width) + 2 * padding < size:
        raise ValueError(
            f"a map of {height}x{width} is smaller than a window of {size}x{size} with {padding} zeros around it"
        )
    rows, columns = ((side + 2 * padding - size) // stride + 1 for side in (height, width))
    return rows, columns


def soft_split(x: jax.Array, size: int, stride: int, padding: int) -> jax.Array:
    """Overlapping windows as tokens (T2T-ViT, L. Yuan et al., 2021, arXiv:2101.11986, section 3.1).

    Args:
      x: (batch, height, width, channels).
      size, stride: size and stride of the windows, in pixels.
      padding: zeros on each side of the map.

    Returns:
      (batch, rows, columns, channels * size * size): for each channel its window, in row-major order.
    """
    rows, columns = soft_split_grid(x.shape[1], x.shape[2], size, stride, padding)
    x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    ends = rows * stride, columns * stride
    pixels = [x[:, i : i + ends[0] : stride, j : j + ends[1] : stride] for i in range(size) for j in range(size)]
    return jnp.stack(pixels, -1).reshape(x.shape[0], rows, columns, -1)


class ConvNorm(Module):
    """Convolution, dense or grouped, followed by an optional norm and an optional activation; with ``norm_first`` the
    norm is before the convolution.

    ``padding`` is the number of zeros on each side, None for half the kernel; "SAME" is TensorFlow's, with an odd zero
    at the end.
    """

    def __init__(
        self,
        in_features: int,
        features: int,
        *,
        kernel_size: int = 3,
        strides: int = 1,
        padding: int | Literal["SAME"] | None = None,
        groups: int = 1,
        norm: Norm | None = "batch",
        norm_epsilon: float = 1e-5,
        norm_first: bool = False,
        activation: Callable[[jax.Array], jax.Array] | None = None,
        use_bias: bool = True,
        kernel_init: Any = variance_scaling(2.0, "fan_out", "truncated_normal"),
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Args:
        kernel_size, strides, padding, groups: options of the convolution.
        norm, norm_epsilon: the norm; None for none.
        norm_first: whether the norm is before the convolution.
        activation: the activation at the end; None for none.
        use_bias: bias of the convolution.
        """
        zeros_each_side = kernel_size // 2 if padding is None else padding
        self.conv = Conv(
            in_features,
            features,
            (kernel_size, kernel_size),
            strides=strides,
            padding=zeros_each_side,
            feature_group_count=groups,
            use_bias=use_bias,
            kernel_init=create_initializer(kernel_init),
            bias_init=zeros,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        norms = {"epsilon": norm_epsilon, "dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.norm = None if norm is None else create_norm(norm, in_features if norm_first else features, **norms)
        self.norm_first, self.activation = norm_first, activation

    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """Maps (batch, height, width, in_features) to (batch, height', width', features); with padding of half an odd
        kernel the sides are divided by ``strides`` and rounded up.

        ``mask`` is bool (batch, height', width'), True = real; a batch norm leaves other tokens out of its statistics.
        """
        if self.norm is None:
            x = self.conv(x)
        else:
            x = self.conv(self.norm(x)) if self.norm_first else of_real(self.norm, self.conv(x), mask)
        return x if self.activation is None else self.activation(x)

    def merged(self) -> ConvNorm:
        """An equivalent for evaluation, with the batch norm folded into the convolution; itself for any other norm or
        none.

        kernel' = kernel s;  bias' = bias s + t;  the norm is x s + t
        """
        norm = self.norm
        if self.norm_first or not isinstance(norm, BatchNorm):
            return self
        copy = nnx.clone(self)
        kernel, bias = copy.conv.kernel, copy.conv.bias
        scale, offset = norm.affine()
        offset = offset if bias is None else offset + widened(bias[...]) * scale
        dtype = kernel[...].dtype
        kernel.set_value((widened(kernel[...]) * scale).astype(dtype))
        copy.conv.bias, copy.conv.use_bias = nnx.data(nnx.Param(offset.astype(dtype))), True
        copy.norm = None
        return copy


class ConvStem(Sequential):
    """3x3 convolutions of stride 2, each followed by a norm and, except the last, an activation.

    ``widths`` gives their features, ``strides`` their strides if not all are 2. n of stride 2 map (batch, height,
    width, channels) to (batch, height / 2^n, width / 2^n, widths[-1]), rounded up: two make tokens of 4x4 pixels.
    """

    def __init__(
        self,
        in_channels: int,
        widths: tuple[int, ...],
        *,
        strides: tuple[int, ...] | None = None,
        norm: Norm = "batch",
        activation: Callable[[jax.Array], jax.Array] = gelu,
        use_bias: bool = True,
        kernel_init: Any = variance_scaling(2.0, "fan_out", "truncated_normal"),
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Args:
        in_channels: channels of the images.
        widths: features of each convolution.
        strides: strides of each convolution; None for 2 each.
        norm: norm after each convolution.
        activation: activation after each norm but the last.
        """
        sizes = (in_channels, *widths)
        last = len(widths) - 1
        super().__init__(
            [
                ConvNorm(
                    sizes[i],
                    sizes[i + 1],
                    strides=2 if strides is None else strides[i],
                    norm=norm,
                    activation=None if i == last else activation,
                    use_bias=use_bias,
                    kernel_init=kernel_init,
                    dtype=dtype,
                    param_dtype=param_dtype,
                    rngs=rngs,
                )
                for i in range(len(widths))
            ]
        )
