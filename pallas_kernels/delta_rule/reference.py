"""The delta rule as its recurrence, one step at a time."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


def delta_rule(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    beta: jax.Array,
    *,
    decay: jax.Array | None,
    scale: float,
    initial_state: jax.Array | None,
    return_state: bool,
    chunk_size: int,
) -> Any:
    """The op; arguments as in :func:`pallas_kernels.delta_rule.delta_rule`, after its checks."""
    del chunk_size
    wide = jnp.promote_types(v.dtype, jnp.float32)
    batch, length, groups, key_dim = q.shape
    heads, value_dim = v.shape[2:]
    queries, keys = (jnp.repeat(x.astype(wide), heads // groups, axis=2) for x in (q, k))
    logs = jnp.zeros((batch, length, heads), wide) if decay is None else decay.astype(wide)
    start = jnp.zeros((batch, heads, key_dim, value_dim), wide) if initial_state is None else initial_state.astype(wide)

    def step(state: jax.Array, inputs: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        key, value, rate = inputs
        held = jnp.sum(key[..., None] * state, axis=-2)
        return state + key[..., None] * (rate[..., None] * (value - held))[..., None, :], None

    def token(state: jax.Array, inputs: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        query, g, *steps = inputs
        state, _ = jax.lax.scan(step, jnp.exp(g)[..., None, None] * state, tuple(steps))
        return state, scale * jnp.sum(query[..., None] * state, axis=-2)

    by_token = [jnp.moveaxis(x, 1, 0) for x in (queries, logs)]
    by_step = [jnp.moveaxis(x.astype(wide).reshape(batch, length, -1, *x.shape[2:]), 0, 2) for x in (keys, v, beta)]
    state, out = jax.lax.scan(token, start, (*by_token, *by_step))
    out = jnp.moveaxis(out, 0, 1).astype(v.dtype)
    return (out, state) if return_state else out
