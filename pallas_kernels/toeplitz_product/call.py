"""The arguments of a Toeplitz product."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax

from pallas_kernels.call import Call


@dataclasses.dataclass(frozen=True, eq=False)
class ToeplitzCall(Call):
    """The arguments of :func:`pallas_kernels.toeplitz_product.toeplitz_product` for an implementation.

    Implementations return y (batch, length, channels), float32 (float64 for float64 inputs).

    Attributes:
      x: (batch, length, channels), float32 or wider.
      kernel: (length, groups) if causal, else (2 length - 1, groups); of x's dtype.
    """

    axes: ClassVar = {"x": "blh", "kernel": "th"}
    results = ("blh",)

    x: jax.Array
    kernel: jax.Array

    @property
    def causal(self) -> bool:
        """Whether the kernel has no negative offsets; always true for a single token."""
        return self.kernel.shape[0] == self.x.shape[1]
