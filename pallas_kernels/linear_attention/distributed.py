"""Linear attention over a sequence that is split over devices: each sends its total decay and the state after its own
tokens.

The outputs of a device's own tokens are computed while the states are communicated. The contribution of earlier tokens
is one more product, q exp(G) S with a decay on keys and (q S) exp(G) with one on values.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels import mesh
from pallas_kernels.dispatch import OPS
from pallas_kernels.documents import Documents
from pallas_kernels.linear_attention.call import LinearCall
from primitives import sequence


def objection(call: LinearCall) -> str | None:
    """Why passing states does not support the call, or None."""
    return sequence.objection(call.q.shape[1]) or (
        None if call.causal else "without causality there is no state to pass"
    )


def linear_attention(call: LinearCall) -> tuple[jax.Array, jax.Array]:
    """The op."""

    def body(part: LinearCall) -> tuple[jax.Array, jax.Array]:
        q, v, packed = part.q, part.v, Documents.of(part.starts)
        out, state = OPS["linear_attention"].within(part.replace(initial_state=None))
        of_values = part.value_decay is not None
        factors = jnp.exp(_sums(part.value_decay if of_values else part.decay, v, state.dtype))
        before, after = sequence.entering(
            packed.carried(jnp.expand_dims(factors[:, -1], -2 if of_values else -1)),
            state,
            part.initial_state,
            lambda factor, state: factor * state,
        )
        queries = jnp.repeat(packed.continuing(q, 1), v.shape[2] // q.shape[2], axis=2).astype(state.dtype)
        queries = queries if of_values else queries * factors
        read = part.scale * jnp.einsum("blhk,bhkv->blhv", queries, before)
        return (out + (read * factors if of_values else read)).astype(v.dtype), after

    return mesh.split_call(body, call)


def _sums(decay: jax.Array | None, v: jax.Array, dtype: Any) -> jax.Array:
    """Cumulative sums of the decays, including each token's: (batch, length, heads, dim or 1)."""
    batch, length, heads, _ = v.shape
    if decay is None:
        return jnp.zeros((batch, length, heads, 1), dtype)
    if decay.ndim == 1:
        decay = jnp.broadcast_to(decay, (batch, length, heads))
    return jnp.cumsum((decay if decay.ndim == 4 else decay[..., None]).astype(dtype), 1)
