"""The arguments of an elementwise linear recurrence."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from pallas_kernels.call import Call


@dataclasses.dataclass(frozen=True, eq=False)
class LinearScanCall(Call):
    """The arguments of :func:`pallas_kernels.linear_scan.linear_scan` for an implementation, which computes h_t =
    exp(decay_t) h_{t-1} + x_t.

    Implementations return h (batch, length, channels) and the last h (batch, channels), both float32 (float64 for
    float64 inputs).

    Attributes:
      x: (batch, length, channels).
      decay: of the same shape, or None for 0.
      initial_state: (batch, channels) or None.
      starts: bool (batch, length) or None, True where a document begins: there h_{t-1} is 0.
    """

    axes: ClassVar = {"x": "blh", "decay": "blh", "initial_state": "bh", "starts": "bl"}
    results = ("blh", "bh")

    x: jax.Array
    decay: jax.Array | None
    initial_state: jax.Array | None
    starts: jax.Array | None

    @property
    def start(self) -> jax.Array:
        """The state before the first token, in float32 or wider."""
        wide: Any = jnp.promote_types(self.x.dtype, jnp.float32)
        batch, _, channels = self.x.shape
        return jnp.zeros((batch, channels), wide) if self.initial_state is None else self.initial_state.astype(wide)
