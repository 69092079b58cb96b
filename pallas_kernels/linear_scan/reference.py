"""The elementwise linear recurrence, one token at a time."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pallas_kernels.linear_scan.call import LinearScanCall


def linear_scan(call: LinearScanCall) -> tuple[jax.Array, jax.Array]:
    """The op."""
    start = call.start

    def step(state: jax.Array, token: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        value, decay, begins = token
        state = jnp.exp(decay) * jnp.where(begins[:, None], 0, state) + value
        return state, state

    decay = jnp.zeros_like(call.x) if call.decay is None else call.decay
    starts = jnp.zeros(call.x.shape[:2], bool) if call.starts is None else call.starts
    tokens = (call.x.astype(start.dtype), decay.astype(start.dtype), starts)
    state, out = jax.lax.scan(step, start, jax.tree.map(lambda a: jnp.moveaxis(a, 1, 0), tokens))
    return jnp.moveaxis(out, 0, 1), state
