"""Depth-wise convolution over a grid, by shifted additions.

Each tap of the kernel is one multiply-add of a shifted view. XLA fuses the taps into one pass; its
own grouped convolution is 10 to 50 times slower on a CPU.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from layers.broadcast import broadcast
from layers.initializers import variance_scaling, zeros
from layers.module import Module
from pallas_kernels import operations

Padding = tuple[tuple[int, int], tuple[int, int]] | Literal["same"] | None
"""Zeros before and after each axis; "same" is TensorFlow's, ceil(size / strides) outputs with the odd zero behind; None is half the kernel on each side."""


def depthwise_convolution(x: jax.Array, kernel: jax.Array, *, strides: int = 1, padding: Padding = None) -> jax.Array:
    """Convolves every channel with its own kernel.

    Args:
      x: (batch, height, width, channels).
      kernel: (kernel_height, kernel_width, 1, channels), the layout of a grouped ``nnx.Conv``.
      strides: step between outputs, both axes.
      padding: see :data:`Padding`.

    Returns:
      (batch, out_height, out_width, channels).
    """
    if padding == "same":
        rows, columns = jax.lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], (strides, strides), "SAME")
    else:
        rows, columns = padding or [(size // 2, size // 2) for size in kernel.shape[:2]]
    return _convolve(jnp.pad(x, ((0, 0), rows, columns, (0, 0))), kernel, strides)


def _taps(x: jax.Array, rows: int, columns: int, strides: int) -> Iterator[tuple[int, int, jax.Array]]:
    """The views of padded ``x`` that each tap of the kernel multiplies."""
    height, width = ((x.shape[axis] - size) // strides + 1 for axis, size in ((1, rows), (2, columns)))
    for i in range(rows):
        for j in range(columns):
            yield i, j, x[:, i : i + (height - 1) * strides + 1 : strides, j : j + (width - 1) * strides + 1 : strides]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _convolve(x: jax.Array, kernel: jax.Array, strides: int) -> jax.Array:
    with operations.multiply_adds():
        return functools.reduce(jnp.add, (tap * kernel[i, j, 0] for i, j, tap in _taps(x, kernel.shape[0], kernel.shape[1], strides)))


def _forward(x: jax.Array, kernel: jax.Array, strides: int) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _convolve(x, kernel, strides), (x, kernel)


def _backward(strides: int, saved: tuple[jax.Array, jax.Array], dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    rows, columns = kernel.shape[:2]

    def from_input(x: jax.Array) -> jax.Array:
        return functools.reduce(jnp.add, (tap * kernel[i, j, 0] for i, j, tap in _taps(x, rows, columns, strides)))

    (dx,) = jax.linear_transpose(from_input, jax.ShapeDtypeStruct(x.shape, x.dtype))(dy)

    # The kernel's gradient multiplies every view by dy: a few examples at a time, or XLA keeps a
    # product as large as the input for each tap.
    def add(total: jax.Array, part: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        sums = [jnp.sum(tap * part[1], (0, 1, 2), dtype=jnp.float32) for _, _, tap in _taps(part[0], rows, columns, strides)]
        return total + jnp.stack(sums).reshape(rows, columns, 1, -1), None

    parts = next(n for n in range(min(8, x.shape[0]), 0, -1) if x.shape[0] % n == 0)
    dkernel, _ = jax.lax.scan(add, jnp.zeros(kernel.shape, jnp.float32), (x.reshape(parts, -1, *x.shape[1:]), dy.reshape(parts, -1, *dy.shape[1:])))
    return dx, dkernel.astype(kernel.dtype)


_convolve.defvjp(_forward, _backward)


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
        self.kernel = nnx.Param(kernel_init(rngs.params(), (kernel_size, kernel_size, 1, features), param_dtype))
        self.bias = nnx.Param(zeros(rngs.params(), (features,), param_dtype)) if use_bias else None
        self.strides, self.padding, self.dtype = strides, padding, dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (batch, height, width, features) to (batch, height', width', features)."""
        dtype = self.dtype or jnp.promote_types(x.dtype, self.kernel.dtype)
        y = depthwise_convolution(x.astype(dtype), self.kernel[...].astype(dtype), strides=self.strides, padding=self.padding)
        return y if self.bias is None else y + broadcast(self.bias[...], y.shape, dtype)
