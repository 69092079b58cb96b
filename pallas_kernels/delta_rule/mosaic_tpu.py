"""The delta rule on TPU: one pass over the chunks of a head with the state in VMEM, forward and backward.

The mathematics is that of :mod:`pallas_kernels.delta_rule.xla`. A chunk's triangular matrix is inverted by repeatedly
doubling the size of the inverted diagonal blocks, with two products over the chunk each time. The kernel has one row
per step: for a token with several steps, the first row decays and the last one is read; the queries of the other rows
are zeros.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels import dispatch
from pallas_kernels.delta_rule.call import DeltaCall, spread, unserved
from pallas_kernels.mosaic_tpu import (
    Plan,
    column,
    joins,
    pairwise,
    product,
    recurrence,
    rows_and_columns,
    state_objection,
)
from pallas_kernels.mosaic_tpu import objection as tpu_objection

CHUNK = 128


def objection(call: DeltaCall) -> str | None:
    """Why the kernel does not support the call, or None."""
    if (reason := unserved(call)) is not None:
        return reason
    q, k, v = call.q, call.k, call.v
    if q.shape[1] == 1:
        return "a single token needs no chunks"
    return state_objection(q.shape[3], v.shape[3], v.shape[2] // q.shape[2]) or tpu_objection(
        q, k, v, call.beta, call.decay
    )


def delta_rule(call: DeltaCall) -> tuple[jax.Array, jax.Array]:
    """The op.

    ``chunk_size`` is used only in interpret mode, so that short sequences have several chunks there.
    """
    steps = call.steps
    logs = None if call.decay is None else spread(call.decay.astype(jnp.float32), steps, 0)
    tokens = [
        spread(call.q, steps, steps - 1),
        call.k,
        call.v,
        call.beta.astype(jnp.float32),
        *([] if logs is None else [logs]),
    ]
    size = call.chunk_size if dispatch.interpreted() else CHUNK
    plan = Plan(DeltaRule(call.scale, call.v.dtype), size, dispatch.interpreted())
    out, state = recurrence(plan, tuple(jnp.swapaxes(x, 1, 2) for x in tokens), call.start, call.v.dtype)
    return jnp.swapaxes(out[:, :, steps - 1 :: steps], 1, 2), state


@dataclasses.dataclass(frozen=True)
class DeltaRule:
    """One chunk.

    Attributes:
      scale: factor of the queries.
      dtype: dtype of the products' operands, except for those of the inverse.
    """

    scale: float
    dtype: Any

    def __call__(
        self,
        state: jax.Array,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        beta: jax.Array,
        decay: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        i, j = rows_and_columns(q.shape[0])
        beta = column(beta)
        alike, scores = beta * self._product(k, k, "nt"), self.scale * self._product(q, k, "nt")
        held, read = self._product(k, state), self.scale * self._product(q, state)
        if decay is None:
            u = product(inverse(jnp.where(i > j, alike, 0.0)), beta * (v - held))
            return state + self._product(k, u, "tn"), read + self._product(jnp.where(i >= j, scores, 0.0), u)
        between, since, until = pairwise(decay)
        weights, since = jnp.exp(between), jnp.exp(since)
        u = product(inverse(jnp.where(i > j, alike * weights, 0.0)), beta * (v - since * held))
        out = since * read + self._product(jnp.where(i >= j, scores * weights, 0.0), u)
        return since[-1:] * state + self._product(k * jnp.exp(until), u, "tn"), out

    def _product(self, a: jax.Array, b: jax.Array, form: str = "nn") -> jax.Array:
        return product(a, b, form, self.dtype)


@jax.custom_vjp
def inverse(lower: jax.Array) -> jax.Array:
    """(I + lower)^-1 for ``lower`` (n, n), n a power of two, zero on and above the diagonal; in full precision, because
    its errors are amplified later.
    """
    n = lower.shape[0]
    i, j = rows_and_columns(n)
    done = jnp.where(i == j, 1.0, 0.0)
    size = 1
    while size < n:
        # For two neighboring blocks A and D with C below A, the inverse of their union has -D^-1 C A^-1 in the place of
        # C.
        corners = jnp.where(joins(n, size), lower, 0.0)
        done = done - (corners if size == 1 else product(product(done, corners), done))
        size *= 2
    return done


def _inverse_forward(lower: jax.Array) -> tuple[jax.Array, jax.Array]:
    result = inverse(lower)
    return result, result


def _inverse_backward(result: jax.Array, d: jax.Array) -> tuple[jax.Array]:
    return (-product(product(result, d, "tn"), result, "nt"),)


inverse.defvjp(_inverse_forward, _inverse_backward)
