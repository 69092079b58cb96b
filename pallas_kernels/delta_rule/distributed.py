"""The delta rule of a sequence that is split over devices: each sends the product of its transitions and the state its own tokens leave.

The product is the rule itself, started from the identity with nothing to write; then each device reads its tokens again from the
state that they find. That is two passes instead of one, for n times as many devices at work.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels import sequence
from pallas_kernels.dispatch import OPS


def objection(q: jax.Array, *_: Any, **__: Any) -> str | None:
    """Why states can't be passed for the call, or None."""
    return sequence.objection(q.shape[1])


def delta_rule(
    q: jax.Array, k: jax.Array, v: jax.Array, beta: jax.Array, *, decay: jax.Array | None, scale: float, initial_state: jax.Array | None,
    return_state: bool, chunk_size: int,
) -> Any:  # fmt: skip
    """The op; arguments as in :func:`pallas_kernels.delta_rule.delta_rule`, after its checks."""

    def body(q: jax.Array, k: jax.Array, v: jax.Array, beta: jax.Array, decay: jax.Array | None, initial: jax.Array | None) -> Any:
        def run(values: jax.Array, start: jax.Array | None) -> tuple[jax.Array, jax.Array]:
            return OPS["delta_rule"].within(q, k, values, beta, decay=decay, scale=scale, initial_state=start, return_state=True, chunk_size=chunk_size)

        batch, _, heads, value_dim = v.shape
        size = k.shape[3]
        wide = jnp.promote_types(v.dtype, jnp.float32)
        # State and product in one pass, as columns of one wider state.
        start = jnp.broadcast_to(jnp.eye(size, value_dim + size, value_dim, dtype=wide), (batch, heads, size, value_dim + size))
        _, both = run(jnp.pad(v, ((0, 0), (0, 0), (0, 0), (0, size))), start)
        state, product = both[..., :value_dim], both[..., value_dim:]
        before, after = sequence.entering(product, state, initial, lambda product, state: jnp.einsum("bhij,bhjv->bhiv", product, state, precision="highest"))
        return run(v, before)[0], after

    out, state = sequence.split(body, (q, k, v, beta, decay, initial_state), (1, 1, 1, 1, None if decay is None else 1, None), (1, None))
    return (out, state) if return_state else out
