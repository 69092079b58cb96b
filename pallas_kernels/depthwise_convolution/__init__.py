"""Depth-wise convolution of a grid: each channel has its own kernel."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from pallas_kernels.depthwise_convolution import reference, xla
from pallas_kernels.depthwise_convolution.call import DepthwiseCall
from pallas_kernels.depthwise_convolution.cases import CASES
from pallas_kernels.depthwise_convolution.geometry import Pair
from pallas_kernels.dispatch import Implementation, Op

Padding = tuple[Pair, Pair] | Literal["same"] | None
"""Zeros before and after rows, and columns; "same" is TensorFlow's: ceil(size / strides) outputs, with an odd zero
after; None is half the kernel on each side.
"""

_op = Op(
    "depthwise_convolution",
    (Implementation("xla", xla.depthwise_convolution), Implementation("reference", reference.depthwise_convolution)),
    CASES,
)


def depthwise_convolution(
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None = None,
    *,
    strides: int | Pair = 1,
    dilation: int | Pair = 1,
    padding: Padding = None,
    implementation: str | None = None,
) -> jax.Array:
    """Depth-wise convolution of a grid: each channel has its own kernel.

        y[i, j, c] = bias[c] + sum_{u, v} kernel[u, v, 0, c] x[i s + u d - before, j s + v d - before, c],  0 outside x

    Sums are float32 (float64 for float64 arrays), also in the gradients. The op can be differentiated any number of
    times, in forward and reverse mode, and mapped.

    With many taps it is computed by Fourier transforms on a CPU. Their errors are relative to the largest value of a
    channel's map, and a NaN or infinity anywhere in a map makes all outputs of its example and channel NaN, not only
    those within reach: a layer with a mask must set masked positions to zero first.

    Args:
      x: (batch, rows, columns, channels).
      kernel: (kernel_rows, kernel_columns, 1, channels), the layout of a grouped ``nnx.Conv``; or with a leading batch
        axis, one for each example.
      bias: (channels,).
      strides: steps between outputs, of rows and columns (or one number for both).
      dilation: steps between taps.
      padding: see :data:`Padding`.
      implementation: the name of an implementation; None uses the best one that supports the call.

    Returns:
      (batch, output_rows, output_columns, channels), in the promoted dtype of x and kernel.

    Raises:
      ValueError: shapes that do not fit together; padding that is negative or too small for the kernel to fit.
    """
    if x.ndim != 4:
        raise ValueError(f"depthwise_convolution: x must be (batch, rows, columns, channels); got {x.shape}")
    batch, *size, channels = x.shape
    taps = kernel.shape[-4:-2]
    if (
        kernel.ndim not in (4, 5)
        or kernel.shape not in ((*taps, 1, channels), (batch, *taps, 1, channels))
        or 0 in taps
    ):
        raise ValueError(
            f"depthwise_convolution: kernel must be (kernel_rows, kernel_columns, 1, {channels}), or ({batch}, ...) "
            f"with one for each "
            f"example; got {kernel.shape}"
        )
    if bias is not None and bias.shape != (channels,):
        raise ValueError(f"depthwise_convolution: bias must be ({channels},); got {bias.shape}")
    strides, dilation = _pair("strides", strides), _pair("dilation", dilation)
    if padding is None:
        rows, columns = ((n // 2, n // 2) for n in taps)
    elif padding == "same":
        reach = [(n - 1) * step + 1 for n, step in zip(taps, dilation)]
        rows, columns = ((before, after) for before, after in jax.lax.padtype_to_pads(size, reach, strides, "SAME"))
    else:
        rows, columns = padding
    if min(*rows, *columns) < 0:
        raise ValueError(f"depthwise_convolution: padding can't be negative; got {(rows, columns)}; cut x itself")
    dtype = jnp.promote_types(x.dtype, kernel.dtype)
    call = DepthwiseCall(x.astype(dtype), kernel[..., 0, :].astype(dtype), strides, dilation, (rows, columns))
    if 0 in call.geometry.output:
        raise ValueError(
            f"depthwise_convolution: a kernel of {tuple(taps)} with dilation {dilation} reaches over "
            f"{call.geometry.reach} and does not fit "
            f"into x of {tuple(size)} with padding {(rows, columns)}"
        )
    (y,) = _op(call, implementation)
    return y if bias is None else add_bias(y, bias)


def add_bias(y: jax.Array, bias: jax.Array) -> jax.Array:
    """``y + bias`` in y's dtype; the gradient of the bias, a sum over all positions, is computed in float32 or
    wider.
    """
    wide = jnp.promote_types(y.dtype, jnp.float32)
    return (y.astype(wide) + bias.astype(wide)).astype(y.dtype)


def _pair(name: str, value: int | Pair) -> Pair:
    rows, columns = (value, value) if isinstance(value, int) else value
    if rows < 1 or columns < 1:
        raise ValueError(f"depthwise_convolution: {name} must be at least 1; got {value}")
    return rows, columns
