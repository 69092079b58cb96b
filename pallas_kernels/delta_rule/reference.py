"""The delta rule as its recurrence, one step at a time."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pallas_kernels.delta_rule.call import DeltaCall


def delta_rule(call: DeltaCall) -> tuple[jax.Array, jax.Array]:
    """The op."""
    wide = call.wide
    batch, length, groups, _ = call.q.shape
    heads = call.v.shape[2]
    read = call.k if call.read_key is None else call.read_key
    queries, keys, reads = (jnp.repeat(x.astype(wide), heads // groups, axis=2) for x in (call.q, call.k, read))
    logs = jnp.zeros((batch, length, heads), wide) if call.decay is None else call.decay.astype(wide)
    logs = logs if logs.ndim == 4 else logs[..., None]

    starts = jnp.zeros((batch, length), bool) if call.starts is None else call.starts

    def step(state: jax.Array, inputs: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        key, read, value, rate = inputs
        held = jnp.sum(read[..., None] * state, axis=-2)
        return state + key[..., None] * (rate[..., None] * (value - held))[..., None, :], None

    def token(state: jax.Array, inputs: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        query, g, begins, *steps = inputs
        state = jnp.where(begins[:, None, None, None], 0, state)
        state, _ = jax.lax.scan(step, jnp.exp(g)[..., None] * state, tuple(steps))
        return state, call.scale * jnp.sum(query[..., None] * state, axis=-2)

    by_token = [jnp.moveaxis(x, 1, 0) for x in (queries, logs, starts)]
    by_step = [
        jnp.moveaxis(x.astype(wide).reshape(batch, length, -1, *x.shape[2:]), 0, 2)
        for x in (keys, reads, call.v, call.beta)
    ]
    state, out = jax.lax.scan(token, call.start, (*by_token, *by_step))
    return jnp.moveaxis(out, 0, 1).astype(call.v.dtype), state
