"""Linear attention with decay as its recurrence, one token at a time."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


def linear_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    decay: jax.Array | None,
    scale: float,
    causal: bool,
    initial_state: jax.Array | None,
    return_state: bool,
    chunk_size: int,
) -> Any:
    """The op; arguments as in :func:`pallas_kernels.linear_attention.linear_attention`, after its checks."""
    del chunk_size
    wide = jnp.promote_types(v.dtype, jnp.float32)
    batch, length, heads, value_dim = v.shape
    repeats = heads // q.shape[2]
    full = (batch, length, heads, q.shape[3])
    queries, keys = (jnp.repeat(x.astype(wide), repeats, axis=2) for x in (q, k))
    values = v.astype(wide)
    log = jnp.zeros((heads,), wide) if decay is None else decay.astype(wide)
    logs = jnp.broadcast_to(log if log.ndim == 4 else log[..., None], full)
    start = jnp.zeros((batch, heads, q.shape[3], value_dim), wide) if initial_state is None else initial_state.astype(wide)

    def step(state: jax.Array, token: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        query, key, value, g = token
        state = jnp.exp(g)[..., None] * state + key[..., None] * value[..., None, :]
        return state, scale * jnp.sum(query[..., None] * state, axis=-2)

    def run(reverse: bool) -> tuple[jax.Array, jax.Array]:
        tokens = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), (queries, keys, values, logs))
        state, out = jax.lax.scan(step, start, tokens, reverse=reverse)
        return state, jnp.moveaxis(out, 0, 1)

    state, out = run(reverse=False)
    if not causal:
        diagonal = scale * jnp.sum(queries * keys, axis=-1, keepdims=True) * values
        out = out + run(reverse=True)[1] - diagonal
    out = out.astype(v.dtype)
    return (out, state) if return_state else out
