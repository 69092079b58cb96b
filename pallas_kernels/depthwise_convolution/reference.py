"""The depth-wise convolution as its sum over taps."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pallas_kernels.depthwise_convolution.call import DepthwiseCall


def depthwise_convolution(call: DepthwiseCall) -> tuple[jax.Array]:
    """The op."""
    sizes, wide = call.geometry, jnp.promote_types(call.x.dtype, jnp.float32)
    x = jnp.pad(call.x.astype(wide), ((0, 0), *call.padding, (0, 0)))
    # The row (column) of the padded input that each output (first axis) reads at each tap (second axis).
    rows, columns = (
        stride * jnp.arange(outputs)[:, None] + step * jnp.arange(taps)
        for outputs, taps, stride, step in zip(sizes.output, sizes.kernel, call.strides, call.dilation)
    )
    windows = x[:, rows[:, :, None, None], columns]
    kernel = jnp.broadcast_to(call.kernel.astype(wide), (x.shape[0], *call.kernel.shape[-3:]))
    return (jnp.einsum("biujvc,buvc->bijc", windows, kernel, precision="highest").astype(call.x.dtype),)
