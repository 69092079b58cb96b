"""The arguments of a selective scan."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from pallas_kernels.call import Call


@dataclasses.dataclass(frozen=True, eq=False)
class ScanCall(Call):
    """The arguments of :func:`pallas_kernels.selective_scan.selective_scan` for an implementation, which computes h_t =
    f_t h_{t-1} + step_t x_t B_t with f_t = exp(step_t A), or 1 - step_t B_t^2 without A, and y_t = C_t . h_t.

    Implementations return y (batch, length, channels) and the last state (batch, channels, state_dim), both float32
    (float64 for float64 inputs).

    Attributes:
      x: (batch, length, channels).
      step: of the same shape, float32 or wider; 0 leaves the state unchanged.
      A: (channels, state_dim), or None for the implicit transition.
      B, C: (batch, length, state_dim), or (batch, length, groups, state_dim).
      initial_state: (batch, channels, state_dim) or None.
      starts: bool (batch, length) or None, True where a document begins: there h_{t-1} is 0.
    """

    axes: ClassVar = {
        "x": "blh", "step": "blh", "A": "hn", "B": "bln blhn", "C": "bln blhn", "initial_state": "bhn", "starts": "bl"
    }  # fmt: skip
    results = ("blh", "bhn")

    x: jax.Array
    step: jax.Array
    A: jax.Array | None
    B: jax.Array
    C: jax.Array
    initial_state: jax.Array | None
    starts: jax.Array | None

    @property
    def groups(self) -> int:
        """Number of channel groups, each with its own B and C."""
        return self.B.shape[2] if self.B.ndim == 4 else 1

    @property
    def state_dim(self) -> int:
        """Size of the state of each channel."""
        return self.B.shape[-1]

    @property
    def start(self) -> jax.Array:
        """The state before the first token, in float32 or wider."""
        wide: Any = self.step.dtype
        return (
            jnp.zeros((self.x.shape[0], self.x.shape[2], self.state_dim), wide)
            if self.initial_state is None
            else self.initial_state.astype(wide)
        )
