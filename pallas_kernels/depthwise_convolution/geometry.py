"""The sizes of a depth-wise convolution."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

Part = Literal["x", "kernel", "y"]
Pair = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Geometry:
    """The sizes of a convolution, (rows, columns) each.

    Attributes:
      size: size of the input.
      kernel: size of the kernel.
      strides: steps between outputs.
      dilation: steps between the kernel's taps.
      padding: zeros before and after each axis of the input; none is negative.
    """

    size: Pair
    kernel: Pair
    strides: Pair
    dilation: Pair
    padding: tuple[Pair, Pair]

    @property
    def reach(self) -> Pair:
        """Extent of the kernel, including its dilation."""
        rows, columns = ((taps - 1) * step + 1 for taps, step in zip(self.kernel, self.dilation))
        return rows, columns

    @property
    def padded(self) -> Pair:
        """Size of the padded input."""
        rows, columns = (size + sum(zeros) for size, zeros in zip(self.size, self.padding))
        return rows, columns

    @property
    def output(self) -> Pair:
        """Size of the output: the kernel's positions that fit into the padded input."""
        rows, columns = (
            max((n - reach) // stride + 1, 0) for n, reach, stride in zip(self.padded, self.reach, self.strides)
        )
        return rows, columns

    @property
    def taps(self) -> int:
        """Number of taps of the kernel."""
        return math.prod(self.kernel)

    def of(self, part: Part) -> Pair:
        """The spatial shape of the input, kernel or output."""
        return {"x": self.size, "kernel": self.kernel, "y": self.output}[part]
