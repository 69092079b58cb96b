"""Shared parts of the delta-rule mixers: unit-norm keys, and a memory that padding leaves unchanged."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from layers.recurrent import RecurrentState
from layers.tokens import Tokens
from pallas_kernels import delta_rule


def correct(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    beta: jax.Array,
    decay: jax.Array | None,
    tokens: Tokens,
    state: RecurrentState | None,
    *,
    read_key: jax.Array | None = None,
    scale: float | None = None,
) -> tuple[jax.Array, jax.Array]:
    """:func:`pallas_kernels.delta_rule` continued from ``state``.

    Args:
      q: (batch, length, heads, key_dim).
      k, v, beta: (batch, steps * length, heads, ...), the steps of a token in order.
      decay: log decay per token, or None.
      tokens: their mask and documents; padding leaves the memory unchanged.
      state: the state after the previous tokens; None if there are none.
      read_key: keys with which the memory is read; None for ``k``.
      scale: as in the op.

    Returns:
      The output (batch, length, value heads, value_dim), and the new memory.
    """
    if tokens.mask is not None:
        # Without decay and writes the memory is unchanged.
        real = jnp.repeat(tokens.mask, k.shape[1] // q.shape[1], axis=1)
        beta = jnp.where(real[..., None], beta, 0)
        if decay is not None:
            decay = jnp.where(tokens.mask.reshape(*tokens.mask.shape, *(1,) * (decay.ndim - 2)), decay, 0)
    before, segment = (None, None) if state is None else (state.memory, state.segment)
    return delta_rule(
        q,
        k,
        v,
        beta,
        decay=decay,
        read_key=read_key,
        scale=scale,
        initial_state=before,
        starts=tokens.starts(segment),
        return_state=True,
    )


def normalized(x: jax.Array) -> jax.Array:
    """x / |x| over the last axis, computed in float32; vectors near 0 stay small."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return (wide * jax.lax.rsqrt(jnp.sum(jnp.square(wide), axis=-1, keepdims=True) + 1e-6)).astype(x.dtype)
