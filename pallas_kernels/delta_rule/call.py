"""The arguments of the delta rule."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from pallas_kernels import documents
from pallas_kernels.linear_attention.call import MatrixCall


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class DeltaCall(MatrixCall):
    """The arguments of :func:`pallas_kernels.delta_rule.delta_rule`, which describes them."""

    axes: ClassVar = {
        "q": "blhd",
        "k": "blhd",
        "v": "blhd",
        "beta": "blh",
        "decay": "blh blhd",
        "read_key": "blhd",
        "initial_state": "bhkv",
        "starts": "bl",
    }

    beta: jax.Array
    read_key: jax.Array | None = None

    @property
    def steps(self) -> int:
        """Number of steps per token."""
        return self.v.shape[1] // self.q.shape[1]


def unserved(call: DeltaCall) -> str | None:
    """Why no kernel supports the call, or None."""
    if call.starts is not None:
        return documents.OBJECTION
    if call.decay is not None and call.decay.ndim == 4:
        return "its chunks weigh scores by one decay for each head; this call has one for each key"
    if call.read_key is not None:
        return "it reads the memory under the keys that it writes to; this call has keys of its own to read under"
    return None


def spread(x: jax.Array, steps: int, place: int) -> jax.Array:
    """Maps (batch, tokens, ...) to (batch, tokens * steps, ...), for kernels with one row per step: values at row
    ``place`` of each token, zeros in its other rows.
    """
    if steps == 1:
        return x
    wide = jnp.pad(x[:, :, None], ((0, 0), (0, 0), (place, steps - 1 - place), *((0, 0),) * (x.ndim - 2)))
    return wide.reshape(x.shape[0], -1, *x.shape[2:])
