"""The selective scan as its recurrence, one token at a time."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


def selective_scan(
    x: jax.Array,
    delta: jax.Array,
    A: jax.Array,
    B: jax.Array,
    C: jax.Array,
    *,
    D: jax.Array | None,
    gate: jax.Array | None,
    delta_bias: jax.Array | None,
    delta_softplus: bool,
    initial_state: jax.Array | None,
    return_state: bool,
) -> Any:
    """The op; arguments as in :func:`pallas_kernels.selective_scan.selective_scan`, after its checks."""
    wide = jnp.promote_types(x.dtype, jnp.float32)
    batch, length, channels = x.shape
    inputs, steps, rates = x.astype(wide), delta.astype(wide), A.astype(wide)
    if delta_bias is not None:
        steps = steps + delta_bias.astype(wide)
    if delta_softplus:
        steps = jax.nn.softplus(steps)

    def per_channel(matrix: jax.Array) -> jax.Array:
        grouped = matrix.astype(wide).reshape(batch, length, -1, rates.shape[1])
        return jnp.repeat(grouped, channels // grouped.shape[2], axis=2)

    def step(state: jax.Array, token: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        value, dt, b, c = token
        state = jnp.exp(dt[..., None] * rates) * state + (dt * value)[..., None] * b
        return state, jnp.sum(c * state, axis=-1)

    start = jnp.zeros((batch, *A.shape), wide) if initial_state is None else initial_state.astype(wide)
    tokens = jax.tree.map(lambda a: jnp.moveaxis(a, 1, 0), (inputs, steps, per_channel(B), per_channel(C)))
    state, out = jax.lax.scan(step, start, tokens)
    out = jnp.moveaxis(out, 0, 1)
    if D is not None:
        out = out + D.astype(wide) * inputs
    if gate is not None:
        out = out * jax.nn.silu(gate.astype(wide))
    out = out.astype(x.dtype)
    return (out, state) if return_state else out
