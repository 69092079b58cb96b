"""The arguments of a short convolution."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax

from pallas_kernels.call import Call
from pallas_kernels.depthwise_convolution.geometry import Pair


@dataclasses.dataclass(frozen=True, eq=False)
class ShortCall(Call):
    """What :func:`pallas_kernels.short_convolution.short_convolution` leaves to an implementation: all but bias, mask
    and the state after.

    Implementations return y (batch, length, channels) in the arrays' dtype.

    Attributes:
      x: (batch, length, channels).
      kernel: (size, channels), or with the batch before; of x's dtype.
      before: (batch, look-back, channels), the tokens before x; None is zeros.
      after: (batch, look-ahead, channels), the tokens after x; None is zeros.
      starts: bool (batch, length) or None, where a document begins: tokens of different ones don't see each other;
        ``before`` is of what the first token continues, ``after`` of the last document.
      reach: how many tokens back and ahead a token sees; their sum is size - 1.
    """

    axes: ClassVar = {"x": "blh", "kernel": "nh bnh", "before": "bmh", "after": "bmh", "starts": "bl"}
    results = ("blh",)

    x: jax.Array
    kernel: jax.Array
    before: jax.Array | None
    after: jax.Array | None
    starts: jax.Array | None
    reach: Pair
