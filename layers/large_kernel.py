"""Large kernels with dilated branches: UniRepLKNet (Ding et al., CVPR 2024, arXiv:2311.15599), "Dilated Reparam Block".

    y = BN(K * x) + sum_j BN_j(K_j * x)

where * is a depth-wise convolution. The branches have small kernels, dilated to cover up to the large kernel's extent.
In evaluation each norm is a scale and an offset, and a dilated kernel is a large kernel with zeros, so the sum is a
single convolution with one kernel and a bias.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from layers.broadcast import widened
from layers.depthwise import DepthwiseConv
from layers.initializers import truncated_normal
from layers.mixer import Mixer, register_mixer, without_padding
from layers.module import Module
from layers.norm import BatchNorm, of_real
from layers.tokens import Tokens
from pallas_kernels import depthwise_convolution

# Kernel sizes and dilations of the branches of each large kernel, from the authors' code.
BRANCHES: Mapping[int, tuple[tuple[int, int], ...]] = {
    5: ((3, 1), (3, 2)),
    7: ((5, 1), (3, 1), (3, 2), (3, 3)),
    9: ((5, 1), (7, 1), (5, 2), (3, 3), (3, 4)),
    11: ((5, 1), (7, 1), (5, 2), (3, 3), (3, 4), (3, 5)),
    13: ((5, 1), (7, 1), (7, 2), (3, 3), (3, 4), (3, 5)),
    15: ((5, 1), (7, 1), (7, 2), (3, 3), (3, 5), (3, 7)),
    17: ((5, 1), (7, 1), (9, 2), (3, 4), (3, 5), (3, 7)),
    19: ((5, 1), (7, 1), (9, 1), (9, 2), (3, 4), (3, 5), (3, 7)),
}


class NormedConvolution(Module):
    """A depth-wise convolution and its batch norm, ``conv`` and ``norm``; if ``merged``, with a bias and no norm."""

    def __init__(
        self,
        features: int,
        kernel_size: int,
        dilation: int = 1,
        *,
        merged: bool = False,
        kernel_init: Any,
        **common: Any,
    ):
        options = {"dilation": dilation, "use_bias": merged, "kernel_init": kernel_init}
        self.conv = DepthwiseConv(features, kernel_size, **options, **common)
        self.norm: Any = None if merged else BatchNorm(features, **common)

    def __call__(self, x: jax.Array, mask: jax.Array | None) -> jax.Array:
        """Maps (batch, height, width, features) to the same shape; the norm's statistics are over real tokens."""
        y = self.conv(x)
        return y if self.norm is None else of_real(self.norm, y, mask)

    def within(self, size: int) -> tuple[jax.Array, jax.Array]:
        """The equivalent of evaluation mode: a kernel (size, size, 1, features) and a bias (features,), in float32."""
        kernel, step = widened(self.conv.kernel[...]), self.conv.dilation
        side = (size - (kernel.shape[0] - 1) * step - 1) // 2
        scale, offset = self.norm.affine()
        around = (side, side, step - 1)
        return jax.lax.pad(kernel * scale, jnp.zeros((), kernel.dtype), (around, around, (0, 0, 0), (0, 0, 0))), offset


@register_mixer("large_kernel_convolution")
class LargeKernelConvolution(Mixer):
    """Depth-wise convolution of a map with a large kernel and parallel branches of smaller, dilated kernels.

    Masked tokens count as zeros and are left out of the norms' statistics.

    Parameters: ``large.conv`` and ``large.norm``, and of each branch ``branches.K_D.conv`` and ``branches.K_D.norm``, K
    the size of its kernel and D the dilation; in the merged form ``large.conv`` alone, which has a bias.
    """

    layouts = ("grid",)

    def __init__(
        self,
        features: int,
        *,
        kernel_size: int = 13,
        merged: bool = False,
        kernel_init: Any = truncated_normal(0.02),
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Args:
          kernel_size: tokens along each side of the large kernel, a key of :data:`BRANCHES`.
          merged: the merged form, one kernel and a bias, without branches and norms.

        Raises:
          ValueError: a size without known branches.
        """
        if kernel_size not in BRANCHES:
            known = ", ".join(map(str, BRANCHES))
            raise ValueError(f"kernel_size must be one of {known}, for which branches are defined; got {kernel_size}")
        common = {"kernel_init": kernel_init, "dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.kernel_size, self.dtype = kernel_size, dtype
        self.large = NormedConvolution(features, kernel_size, merged=merged, **common)
        beside = () if merged else BRANCHES[kernel_size]
        parts = {f"{size}_{step}": NormedConvolution(features, size, step, **common) for size, step in beside}
        self.branches: Any = nnx.Dict(parts) if parts else None

    @property
    def complexity(self) -> float:
        return 1.0

    def mix(self, x: jax.Array, tokens: Tokens) -> jax.Array:
        mask = tokens.mask
        x = without_padding(x, mask)
        if self.branches is None:
            return self.large(x, mask)
        if self.large.norm.use_running_average:
            dtype = self.dtype or jnp.promote_types(x.dtype, self.large.conv.kernel.dtype)
            kernel, bias = self._summed()
            return depthwise_convolution(x.astype(dtype), kernel.astype(dtype), bias.astype(dtype))
        y = self.large(x, mask)
        for branch in self.branches.values():
            y = y + branch(x, mask)
        return y

    def _summed(self) -> tuple[jax.Array, jax.Array]:
        """The merged kernel (kernel_size, kernel_size, 1, features) and bias (features,), in float32."""
        parts = [part.within(self.kernel_size) for part in (self.large, *self.branches.values())]
        return sum(kernel for kernel, _ in parts), sum(bias for _, bias in parts)  # type: ignore[return-value]

    def merged(self) -> LargeKernelConvolution:
        """An equivalent for evaluation, with one kernel and a bias; itself if it is merged already."""
        if self.branches is None:
            return self
        kernel, bias = self._summed()
        conv = self.large.conv
        merged = LargeKernelConvolution(
            kernel.shape[-1],
            kernel_size=self.kernel_size,
            merged=True,
            dtype=self.dtype,
            param_dtype=conv.kernel.dtype,
            rngs=nnx.Rngs(0),
        )
        for parameter, value in ((merged.large.conv.kernel, kernel), (merged.large.conv.bias, bias)):
            assert parameter is not None
            parameter.set_value(value.astype(conv.kernel.dtype))
        return merged
