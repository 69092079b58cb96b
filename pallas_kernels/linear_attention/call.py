"""The arguments of linear attention, and the common ones of recurrences with a matrix as the state of each head."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from pallas_kernels import documents
from pallas_kernels.call import Call


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class MatrixCall(Call):
    """The common arguments of these recurrences.

    Implementations return the output (batch, length, heads, value_dim) in v's dtype, and the state (batch, heads,
    key_dim, value_dim) in ``wide``.
    """

    results = ("blhd", "bhkv")

    q: jax.Array
    k: jax.Array
    v: jax.Array
    decay: jax.Array | None
    initial_state: jax.Array | None
    starts: jax.Array | None
    scale: float
    chunk_size: int

    @property
    def wide(self) -> jnp.dtype:
        """The dtype of state and sums: float32, or float64 for float64 inputs."""
        return jnp.promote_types(self.v.dtype, jnp.float32)

    @property
    def start(self) -> jax.Array:
        """The state before the first token."""
        if self.initial_state is not None:
            return self.initial_state.astype(self.wide)
        return jnp.zeros((self.v.shape[0], self.v.shape[2], self.q.shape[3], self.v.shape[3]), self.wide)


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class LinearCall(MatrixCall):
    """The arguments of :func:`pallas_kernels.linear_attention.linear_attention`, which describes them; if not
    ``causal`` the last state has no meaning.
    """

    axes: ClassVar = {
        "q": "blhd",
        "k": "blhd",
        "v": "blhd",
        "decay": "h blh blhd",
        "value_decay": "blhd",
        "backward_decay": "h blh blhd",
        "initial_state": "bhkv",
        "starts": "bl",
    }

    causal: bool
    value_decay: jax.Array | None = None
    backward_decay: jax.Array | None = None

    def kernel_objection(self) -> str | None:
        """Why no kernel supports the call, only the XLA implementation, or None."""
        if self.starts is not None:
            return documents.OBJECTION
        if self.value_decay is not None:
            return "value_decay is given, and its chunks weigh keys, not values"
        if self.backward_decay is not None:
            return "backward_decay is given, and both of its directions run with one decay"
        return None
