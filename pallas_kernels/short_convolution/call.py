"""The arguments of a short convolution."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax

from pallas_kernels.call import Call
from pallas_kernels.depthwise_convolution.geometry import Pair


@dataclasses.dataclass(frozen=True, eq=False)
class ShortCall(Call):
    """The arguments of :func:`pallas_kernels.short_convolution.short_convolution` for an implementation, without bias,
    mask and the new state.

    Implementations return y (batch, length, channels) in the arrays' dtype.

    Attributes:
      x: (batch, length, channels).
      kernel: (size, channels), or with a leading batch axis; of x's dtype.
      before: (batch, look-back, channels), the tokens before x; None is zeros.
      after: (batch, look-ahead, channels), the tokens after x; None is zeros.
      starts: bool (batch, length) or None, True where a document begins: tokens of different documents don't interact;
        ``before`` belongs to the document that the first token continues, ``after`` to the last document.
      reach: numbers of tokens before and after itself that a token reads; their sum is size - 1.
    """

    axes: ClassVar = {"x": "blh", "kernel": "nh bnh", "before": "bmh", "after": "bmh", "starts": "bl"}
    results = ("blh",)

    x: jax.Array
    kernel: jax.Array
    before: jax.Array | None
    after: jax.Array | None
    starts: jax.Array | None
    reach: Pair
