"""The selective scan as its recurrence, one token at a time."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pallas_kernels.selective_scan.call import ScanCall


def selective_scan(call: ScanCall) -> tuple[jax.Array, jax.Array]:
    """The op."""
    wide = call.step.dtype
    batch, length, channels = call.x.shape
    rates = None if call.A is None else call.A.astype(wide)

    def per_channel(matrix: jax.Array) -> jax.Array:
        grouped = matrix.astype(wide).reshape(batch, length, -1, call.state_dim)
        return jnp.repeat(grouped, channels // grouped.shape[2], axis=2)

    def step(state: jax.Array, token: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        value, dt, b, c, begins = token
        state = jnp.where(begins[:, None, None], 0, state)
        factor = 1 - dt[..., None] * jnp.square(b) if rates is None else jnp.exp(dt[..., None] * rates)
        state = factor * state + (dt * value)[..., None] * b
        return state, jnp.sum(c * state, axis=-1)

    starts = jnp.zeros((batch, length), bool) if call.starts is None else call.starts
    by_token = (call.x.astype(wide), call.step, per_channel(call.B), per_channel(call.C), starts)
    tokens = jax.tree.map(lambda a: jnp.moveaxis(a, 1, 0), by_token)
    state, out = jax.lax.scan(step, call.start, tokens)
    return jnp.moveaxis(out, 0, 1), state
