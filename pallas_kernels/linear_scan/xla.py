"""The elementwise linear recurrence as a loop over tokens, with a gradient that is such a loop as well.

On a CPU one token at a time is fastest: an associative scan reads and writes everything once per level. The loop reads
each token in place, at axis 1, and writes the state there; a ``lax.scan`` would copy every array to move tokens to the
front, which takes as long as the recurrence itself. On other platforms, where sequential steps cost more than memory
traffic, it is an associative scan.

With F_t = exp(decay_t), 0 where a document begins, the loop and its transpose are

    forth, t = 1, 2, ...     s <- F_t s;  s <- s + x_t;  y_t = s
    back, t = ..., 2, 1      s <- s + x_t;  y_t = s;  s <- F_t s

so that the gradient of either with respect to x is the other, applied to the cotangents. With h the outputs of the loop
that goes forth, h_0 its initial state, and d the outputs of the loop that goes back, the gradient with respect to the
decay is F_t h_{t-1} d_t in both cases.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.linear_scan.call import LinearScanCall
from primitives.differentiation import differentiable
from primitives.exponential import LOG2_E, exp2
from primitives.platform import current_platform


def linear_scan(call: LinearScanCall) -> tuple[jax.Array, jax.Array]:
    """The op."""
    return _loop(False, call.x, call.decay, call.start, call.starts)


def _factor(decay: jax.Array | None, dtype: Any) -> jax.Array | None:
    return None if decay is None else exp2(LOG2_E * decay.astype(dtype))


def _times(factor: jax.Array | None, starts: jax.Array | None, state: jax.Array) -> jax.Array:
    """``factor * state``, and zeros where a document begins."""
    kept = state if factor is None else factor * state
    return kept if starts is None else jnp.where(starts[..., None], 0, kept)


@differentiable(1)
def _loop(
    back: bool, x: jax.Array, decay: jax.Array | None, state: jax.Array, starts: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """The outputs y (batch, length, channels) and the last s, both in the state's dtype."""
    if current_platform() != "cpu":
        return _levels(back, x.astype(state.dtype), decay, state, starts)
    length = x.shape[1]

    def step(count: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        state, y = carry
        token = length - 1 - count if back else count
        value, log, begins = (
            None if a is None else jax.lax.dynamic_index_in_dim(a, token, 1, keepdims=False) for a in (x, decay, starts)
        )
        assert value is not None
        factor, value = _factor(log, state.dtype), value.astype(state.dtype)
        state = state + value if back else _times(factor, begins, state) + value
        y = jax.lax.dynamic_update_index_in_dim(y, state, token, 1)
        return _times(factor, begins, state) if back else state, y

    # Not written in place of x: with both used in a step, XLA would copy the whole array in every step.
    last, y = jax.lax.fori_loop(0, length, step, (state, jnp.empty(x.shape, state.dtype)))
    return y, last


def _levels(
    back: bool, x: jax.Array, decay: jax.Array | None, state: jax.Array, starts: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """:func:`_loop` as an associative scan, with a number of steps logarithmic in the length."""
    factors = jnp.ones_like(x) if decay is None else jnp.exp(decay.astype(x.dtype))
    factors = factors if starts is None else jnp.where(starts[..., None], 0, factors)
    first = factors[:, 0]
    if back:
        # A token reads the decayed state of the next one.
        x, factors = x.at[:, -1].add(state), jnp.concatenate([factors[:, 1:], jnp.zeros_like(x[:, :1])], axis=1)
    else:
        x = x.at[:, 0].add(first * state)

    def join(read: tuple[jax.Array, jax.Array], then: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        return read[0] * then[0], then[0] * read[1] + then[1]

    y = jax.lax.associative_scan(join, (factors, x), reverse=back, axis=1)[1]
    return y, first * y[:, 0] if back else y[:, -1]


def _forward(
    back: bool, x: jax.Array, decay: jax.Array | None, state: jax.Array, starts: jax.Array | None
) -> tuple[Any, Any]:
    y, last = _loop(back, x, decay, state, starts)
    return (y, last), (x, y, decay, state, starts)


def _backward(back: bool, residuals: Any, cotangents: Any) -> tuple[jax.Array | None, ...]:
    x, y, decay, state, starts = residuals
    d_y, d_last = cotangents
    d, d_state = _loop(not back, d_y, decay, d_last, starts)
    d_decay = None
    if decay is not None:
        forth, first, away = (d, d_last, y) if back else (y, state, d)
        entering = jnp.concatenate([first[:, None], forth[:, :-1]], axis=1)
        d_decay = (_times(_factor(decay, y.dtype), starts, entering) * away).astype(decay.dtype)
    return d.astype(x.dtype), d_decay, d_state, None


_loop.define(_forward, _backward)
