"""The arguments of linear attention."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from pallas_kernels.call import Call


@dataclasses.dataclass(frozen=True, eq=False)
class LinearCall(Call):
    """Those of :func:`pallas_kernels.linear_attention.linear_attention`, which tells what they are.

    Implementations return the output in v's dtype and, where it is causal, the last state (batch, heads, key_dim, value_dim) in ``wide``.
    """

    axes: ClassVar = {"q": "blhd", "k": "blhd", "v": "blhd", "decay": "h blh blhd", "initial_state": "bhkv"}
    results = ("blhd", "bhkv")

    q: jax.Array
    k: jax.Array
    v: jax.Array
    decay: jax.Array | None
    initial_state: jax.Array | None
    scale: float
    causal: bool
    chunk_size: int

    @property
    def wide(self) -> jnp.dtype:
        """Of state and sums."""
        return jnp.promote_types(self.v.dtype, jnp.float32)

    @property
    def start(self) -> jax.Array:
        """The state before the first token."""
        if self.initial_state is not None:
            return self.initial_state.astype(self.wide)
        return jnp.zeros((self.v.shape[0], self.v.shape[2], self.q.shape[3], self.v.shape[3]), self.wide)
