"""Linear attention with decay as its recurrence, one token at a time."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pallas_kernels.linear_attention.call import LinearCall


def linear_attention(call: LinearCall) -> tuple[jax.Array, jax.Array]:
    """The op."""
    wide = call.wide
    batch, length, heads, _ = call.v.shape
    repeats = heads // call.q.shape[2]
    queries, keys = (jnp.repeat(x.astype(wide), repeats, axis=2) for x in (call.q, call.k))
    values = call.v.astype(wide)

    def factors(decay: jax.Array | None, axis: int) -> jax.Array:
        """Factors of the state's keys or, along the other axis, its values: (batch, length, heads, dim or 1, dim or
        1).
        """
        log = jnp.zeros((heads,), wide) if decay is None else decay.astype(wide)
        log = log if log.ndim == 4 else log[..., None]
        return jnp.exp(jnp.expand_dims(jnp.broadcast_to(log, (batch, length, heads, log.shape[-1])), axis))

    forward = factors(call.decay, -1) * factors(call.value_decay, -2)
    backward = forward if call.backward_decay is None else factors(call.backward_decay, -1)
    starts = jnp.zeros((batch, length), bool) if call.starts is None else call.starts

    def step(state: jax.Array, token: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        query, key, value, factor, begins = token
        state = jnp.where(begins[:, None, None, None], 0, state)
        state = factor * state + key[..., None] * value[..., None, :]
        return state, call.scale * jnp.sum(query[..., None] * state, axis=-2)

    def run(reverse: bool) -> tuple[jax.Array, jax.Array]:
        # From the right a document starts at its last token.
        begins = jnp.roll(starts, -1, axis=1) if reverse else starts
        tokens = (queries, keys, values, backward if reverse else forward, begins)
        tokens = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), tokens)
        state, out = jax.lax.scan(step, call.start, tokens, reverse=reverse)
        return state, jnp.moveaxis(out, 0, 1)

    state, out = run(reverse=False)
    if not call.causal:
        diagonal = call.scale * jnp.sum(queries * keys, axis=-1, keepdims=True) * values
        out = out + run(reverse=True)[1] - diagonal
    return out.astype(call.v.dtype), state
