"""The arguments of neighborhood attention."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax

from pallas_kernels.call import Call
from pallas_kernels.neighborhood_attention.geometry import Axis


@dataclasses.dataclass(frozen=True, eq=False)
class NeighborhoodCall(Call):
    """The arguments of :func:`pallas_kernels.neighborhood_attention.neighborhood_attention`, which describes them.

    Implementations return (batch, *grid, heads, value_dim) in q's dtype.

    Attributes:
      grid: the axes of the grid, one to three.
    """

    axes: ClassVar = {
        "q": "bnhd bxyhd bxyzhd",
        "k": "bnhd bxyhd bxyzhd",
        "v": "bnhd bxyhd bxyzhd",
        "bias": "ho hop hopr",
        "mask": "bn bxy bxyz",
    }
    q: jax.Array
    k: jax.Array
    v: jax.Array
    bias: jax.Array | None
    mask: jax.Array | None
    grid: tuple[Axis, ...]
    scale: float

    @property
    def results(self) -> tuple[str, ...]:
        return (self.arrays["q"][1],)
