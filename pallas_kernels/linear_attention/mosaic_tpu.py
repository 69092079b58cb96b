"""Linear attention on TPU: one pass over the chunks of a head with the state in VMEM, forward and backward.

The mathematics is that of :mod:`pallas_kernels.linear_attention.xla`. With a decay per head and token, a chunk needs
one matrix of sums of decays, itself a product. A decay per key dimension is applied in blocks of 1, 2, 4, ... tokens:
late queries times exp(sum since their block's start) with early keys times exp(sum until their block's end), in one
product over the whole chunk each, of which only pairs of neighboring blocks are kept. A TPU has one or two cores, for
which a few heads are enough: there is no two-pass form.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels import dispatch
from pallas_kernels.linear_attention.call import LinearCall
from pallas_kernels.mosaic_tpu import (
    LEAST_DECAY,
    Plan,
    joins,
    pairwise,
    product,
    recurrence,
    rows_and_columns,
    state_objection,
)
from pallas_kernels.mosaic_tpu import objection as tpu_objection

CHUNK, CHUNK_PER_KEY = 128, 64


def objection(call: LinearCall) -> str | None:
    """Why the kernel does not support the call, or None."""
    if (reason := call.kernel_objection()) is not None:
        return reason
    q, k, v, decay = call.q, call.k, call.v, call.decay
    if q.shape[1] == 1:
        return "a single token needs no chunks"
    if decay is None and not call.causal:
        return "without causality and decay it is two plain products"
    return state_objection(q.shape[3], v.shape[3], v.shape[2] // q.shape[2]) or tpu_objection(q, k, v, decay)


def linear_attention(call: LinearCall) -> tuple[jax.Array, jax.Array]:
    """The op.

    ``chunk_size`` is used only in interpret mode, so that short sequences have several chunks there.
    """
    q, k, v, decay, state = call.q, call.k, call.v, call.decay, call.start
    if decay is not None and decay.ndim == 1:
        decay = jnp.broadcast_to(decay, v.shape[:3])
    per_key = decay is not None and decay.ndim == 4
    size = call.chunk_size if dispatch.interpreted() else CHUNK_PER_KEY if per_key else CHUNK
    tokens = [jnp.swapaxes(x, 1, 2) for x in (q, k, v) + (() if decay is None else (decay.astype(jnp.float32),))]

    def run(strict: bool, tokens: list[jax.Array], dtype: Any) -> tuple[jax.Array, jax.Array]:
        chunk = LinearAttention(per_key, strict, call.scale, v.dtype)
        return recurrence(Plan(chunk, size, dispatch.interpreted()), tuple(tokens), state, dtype)

    if call.causal:
        out, state = run(False, tokens, v.dtype)
    else:
        forth, _ = run(False, tokens, jnp.float32)
        back, _ = run(True, [jnp.flip(x, 2) for x in tokens], jnp.float32)
        out = (forth + jnp.flip(back, 2)).astype(v.dtype)
    return jnp.swapaxes(out, 1, 2), state


@dataclasses.dataclass(frozen=True)
class LinearAttention:
    """One chunk.

    Attributes:
      per_key: each key dimension has its own decay.
      strict: a token does not read itself.
      scale: factor of the queries.
      dtype: dtype of the products' operands.
    """

    per_key: bool
    strict: bool
    scale: float
    dtype: Any

    def __call__(
        self, state: jax.Array, q: jax.Array, k: jax.Array, v: jax.Array, decay: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        if decay is not None and self.per_key:
            return self._per_key(state, self.scale * q, k, v, jnp.maximum(decay, LEAST_DECAY))
        i, j = rows_and_columns(q.shape[0])
        visible = i > j if self.strict else i >= j
        scores = self.scale * self._product(q, k, "nt")
        carried = self.scale * self._product(q, state)
        if decay is None:
            return state + self._product(k, v, "tn"), self._product(jnp.where(visible, scores, 0.0), v) + carried
        between, since, until = pairwise(decay)
        out = self._product(scores * jnp.where(visible, jnp.exp(between), 0.0), v) + jnp.exp(since) * carried
        return jnp.exp(since[-1:]) * state + self._product(k * jnp.exp(until), v, "tn"), out

    def _per_key(
        self, state: jax.Array, q: jax.Array, k: jax.Array, v: jax.Array, decay: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        chunk = q.shape[0]
        i, j = rows_and_columns(chunk)

        def sums(size: int) -> tuple[jax.Array, jax.Array]:
            """The sums of decays from a block's start through i, and from after j to a block's end, for blocks of
            ``size``.
            """
            together = (i ^ j) < size
            since = product(jnp.where(together & (j <= i), 1.0, 0.0), decay)
            return since, product(jnp.where(together & (j > i), 1.0, 0.0), decay)

        scores = jnp.zeros((chunk, chunk), jnp.float32)
        size = 1
        while size < chunk:
            since, until = sums(size)
            across = self._product(q * jnp.exp(since), k * jnp.exp(until), "nt")
            scores = scores + jnp.where(joins(chunk, size), across, 0.0)
            size *= 2
        since, until = sums(chunk)
        out = self._product(scores, v) + self._product(q * jnp.exp(since), state)
        if not self.strict:
            out = out + jnp.sum(q * k, 1, keepdims=True) * v
        total = jnp.exp(since[-1:])
        # The state's rows are keys: its decay must be a column, made from a row by the identity.
        keys, others = rows_and_columns(q.shape[1])
        state = jnp.sum(jnp.where(keys == others, total, 0.0), 1, keepdims=True) * state
        return state + self._product(k * jnp.exp(until), v, "tn"), out

    def _product(self, a: jax.Array, b: jax.Array, form: str = "nn") -> jax.Array:
        return product(a, b, form, self.dtype)
