"""The arguments of a depth-wise convolution."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax

from pallas_kernels.call import Call
from pallas_kernels.depthwise_convolution.geometry import Geometry, Pair


@dataclasses.dataclass(frozen=True, eq=False)
class DepthwiseCall(Call):
    """The arguments of :func:`pallas_kernels.depthwise_convolution.depthwise_convolution` for an implementation,
    without the bias.

    Implementations return y (batch, output_rows, output_columns, channels) in the arrays' dtype.

    Attributes:
      x: (batch, rows, columns, channels).
      kernel: (kernel_rows, kernel_columns, channels), or with a leading batch axis; of x's dtype.
      strides, dilation: those of rows and columns.
      padding: zeros before and after rows, and columns.
    """

    axes: ClassVar = {"x": "bijh", "kernel": "uvh buvh"}
    results = ("bijh",)

    x: jax.Array
    kernel: jax.Array
    strides: Pair
    dilation: Pair
    padding: tuple[Pair, Pair]

    @property
    def geometry(self) -> Geometry:
        """The sizes of the convolution."""
        rows, columns = self.x.shape[1:3]
        kernel_rows, kernel_columns = self.kernel.shape[-3:-1]
        return Geometry((rows, columns), (kernel_rows, kernel_columns), self.strides, self.dilation, self.padding)
