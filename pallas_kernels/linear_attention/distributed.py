"""Linear attention of a sequence that is split over devices: each sends its decay and the state that its own tokens leave.

The outputs of a device's own tokens are computed while the states travel; what came before is one more product, q exp(G) S.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels import sequence
from pallas_kernels.dispatch import OPS


def objection(q: jax.Array, k: jax.Array, v: jax.Array, *, causal: bool, **_: Any) -> str | None:
    """Why states can't be passed for the call, or None."""
    return sequence.objection(q.shape[1]) or (None if causal else "without causality there is no state to pass")


def linear_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, *, decay: jax.Array | None, scale: float, causal: bool, initial_state: jax.Array | None,
    return_state: bool, chunk_size: int,
) -> Any:  # fmt: skip
    """The op; arguments as in :func:`pallas_kernels.linear_attention.linear_attention`, after its checks."""

    def body(q: jax.Array, k: jax.Array, v: jax.Array, decay: jax.Array | None, initial: jax.Array | None) -> Any:
        out, state = OPS["linear_attention"].within(
            q, k, v, decay=decay, scale=scale, causal=True, initial_state=None, return_state=True, chunk_size=chunk_size
        )  # fmt: skip
        sums = _sums(decay, v, state.dtype)
        before, after = sequence.entering(jnp.exp(sums[:, -1]), state, initial, lambda factor, state: factor[..., None] * state)
        queries = jnp.repeat(q, v.shape[2] // q.shape[2], axis=2).astype(state.dtype) * jnp.exp(sums)
        return (out + scale * jnp.einsum("blhk,bhkv->blhv", queries, before)).astype(v.dtype), after

    axis = None if decay is None or decay.ndim == 1 else 1
    out, state = sequence.split(body, (q, k, v, decay, initial_state), (1, 1, 1, axis, None), (1, None))
    return (out, state) if return_state else out


def _sums(decay: jax.Array | None, v: jax.Array, dtype: Any) -> jax.Array:
    """Sums of the decays up to each token and with it: (batch, length, heads, key_dim or 1)."""
    batch, length, heads, _ = v.shape
    if decay is None:
        return jnp.zeros((batch, length, heads, 1), dtype)
    if decay.ndim == 1:
        decay = jnp.broadcast_to(decay, (batch, length, heads))
    return jnp.cumsum((decay if decay.ndim == 4 else decay[..., None]).astype(dtype), 1)
