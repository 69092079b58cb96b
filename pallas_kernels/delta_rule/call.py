"""The arguments of the delta rule."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from pallas_kernels.call import Call


@dataclasses.dataclass(frozen=True, eq=False)
class DeltaCall(Call):
    """Those of :func:`pallas_kernels.delta_rule.delta_rule`, which tells what they are.

    Implementations return the output in v's dtype and the last state (batch, heads, key_dim, value_dim) in ``wide``.
    """

    axes: ClassVar = {"q": "blhd", "k": "blhd", "v": "blhd", "beta": "blh", "decay": "blh", "initial_state": "bhkv"}
    results = ("blhd", "bhkv")

    q: jax.Array
    k: jax.Array
    v: jax.Array
    beta: jax.Array
    decay: jax.Array | None
    initial_state: jax.Array | None
    scale: float
    chunk_size: int

    @property
    def steps(self) -> int:
        """Of a token."""
        return self.v.shape[1] // self.q.shape[1]

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


def spread(x: jax.Array, steps: int, place: int) -> jax.Array:
    """(batch, tokens, ...) to (batch, tokens * steps, ...), for kernels that know rows only: each at row ``place`` of its token, zeros in the others."""
    if steps == 1:
        return x
    wide = jnp.pad(x[:, :, None], ((0, 0), (0, 0), (place, steps - 1 - place), *((0, 0),) * (x.ndim - 2)))
    return wide.reshape(x.shape[0], -1, *x.shape[2:])
