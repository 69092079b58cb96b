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
      size: of the input.
      kernel: of the kernel.
      strides: between outputs.
      dilation: between the kernel's taps.
      padding: zeros before and after each axis of the input; none is negative.
    """

    size: Pair
    kernel: Pair
    strides: Pair
    dilation: Pair
    padding: tuple[Pair, Pair]

    @property
    def reach(self) -> Pair:
        """Of the kernel, its dilation included."""
        rows, columns = ((taps - 1) * step + 1 for taps, step in zip(self.kernel, self.dilation))
        return rows, columns

    @property
    def padded(self) -> Pair:
        """The input with its padding."""
        rows, columns = (size + sum(zeros) for size, zeros in zip(self.size, self.padding))
        return rows, columns

    @property
    def output(self) -> Pair:
        """Positions of the kernel that fit into the padded input."""
        rows, columns = (
            max((n - reach) // stride + 1, 0) for n, reach, stride in zip(self.padded, self.reach, self.strides)
        )
        return rows, columns

    @property
    def taps(self) -> int:
        """Of the kernel."""
        return math.prod(self.kernel)

    def of(self, part: Part) -> Pair:
        """The spatial shape of one of the three."""
        return {"x": self.size, "kernel": self.kernel, "y": self.output}[part]
