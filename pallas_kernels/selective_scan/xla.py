"""The selective scan as a scan over tokens, with a gradient that stores only the states at chunk boundaries.

On a CPU one token at a time is faster than an associative scan: the state stays in the nearest cache, whereas the other
form writes it for every token. The gradient iterates over the chunks in reverse and recomputes a chunk's states. Only
the two recurrences, of the state and of its cotangent, run token by token; all sums over them are computed for the
chunk at once. An implicit transition has no rates; its factors depend only on the tokens. Channels are the last axis of
every array here, for the vector units. Where a document begins the decayed state is 0.
"""

from __future__ import annotations

import functools
import math
import operator
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.selective_scan.call import ScanCall
from primitives.differentiation import differentiable
from primitives.exponential import LOG2_E, exp2

# Tokens between two stored states: few, so that a chunk's states, of which the gradient has three copies, stay in
# cache.
CHUNK = 16
# Unrolled terms of a sum over the state dimension: XLA's CPU reductions over an axis other than the last do not
# vectorize.
UNROLL = 16

# The arrays over tokens: x, delta (batch, length, groups, channels), B, C (batch, length, groups, state_dim), and
# starts (batch, length, groups, 1) or None; channels are those of one group. In the scans batch and groups are merged
# into one axis, "rows": an axis of size 1 next to them makes XLA's CPU reductions several times slower. There a token's
# arrays are (rows, channels), (rows, state_dim) and (rows, 1), a state is (rows, state_dim, channels), and the rates,
# A, are (rows, state_dim, channels), or (1, ...) where all rows share them.
Tokens = tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array | None]


def selective_scan(call: ScanCall) -> tuple[jax.Array, jax.Array]:
    """The op."""
    wide = call.step.dtype
    batch, length, channels = call.x.shape
    state_dim, groups = call.state_dim, call.groups

    def channels_last(matrix: jax.Array) -> jax.Array:
        """(..., channels, state_dim) to (... * groups, state_dim, channels of a group)."""
        return jnp.swapaxes(matrix.astype(wide).reshape(-1, channels // groups, state_dim), -1, -2)

    rates = None if call.A is None else channels_last(call.A)
    # Groups have different rates, batch elements the same ones.
    if rates is not None and groups > 1:
        rates = jnp.tile(rates, (batch, 1, 1))
    shape = (batch * groups, state_dim, channels // groups)
    state = jnp.zeros(shape, wide) if call.initial_state is None else channels_last(call.initial_state)
    starts = None if call.starts is None else jnp.repeat(call.starts[:, :, None], groups, axis=2)
    tokens: Any = jax.tree.map(
        lambda a: a.reshape(batch, length, groups, -1), (call.x, call.step, call.B, call.C, starts)
    )
    if length == 1:
        state, out = _token(rates, state, _widen(jax.tree.map(lambda a: a.reshape(batch * groups, -1), tokens), wide))
    else:
        out, state = _recurrence(rates, state, tokens)
    return out.reshape(call.x.shape), jnp.swapaxes(state, -1, -2).reshape(batch, channels, state_dim)


def _widen(tokens: Tokens, dtype: Any) -> Tokens:
    *arrays, starts = tokens
    x, delta, b, c = (a.astype(dtype) for a in arrays)
    return x, delta, b, c, starts


def _reset(starts: jax.Array | None, state: jax.Array) -> jax.Array:
    """The state, with zeros where a document begins."""
    return state if starts is None else jnp.where(starts[..., None], 0, state)


def _factors(rates: jax.Array | None, delta: jax.Array, b: jax.Array) -> jax.Array:
    """The factors of the state at tokens: (..., rows, state_dim, channels)."""
    if rates is None:
        return 1 - delta[..., None, :] * jnp.square(b)[..., None]
    return exp2(delta[..., None, :] * (LOG2_E * rates))


def _token(rates: jax.Array | None, state: jax.Array, token: Tokens) -> tuple[jax.Array, jax.Array]:
    x, delta, b, c, starts = token
    state = _reset(starts, _factors(rates, delta, b) * state) + b[..., None] * (delta * x)[..., None, :]
    # Unrolled: as a reduction this is nine times slower for a single row.
    terms = (c[:, n, None] * state[:, n] for n in range(state.shape[1]))
    return state, functools.reduce(operator.add, terms)


@differentiable()
def _recurrence(rates: jax.Array | None, state: jax.Array, tokens: Tokens) -> tuple[jax.Array, jax.Array]:
    """Outputs (batch, length, groups, channels) and the last state, both in the state's dtype."""
    # Nothing is stored for a gradient here, so that tokens need not be split into chunks, which would copy them.
    rows: Any = jax.tree.map(lambda a: jnp.moveaxis(a, 1, 0).reshape(a.shape[1], -1, a.shape[3]), tokens)
    last, out = jax.lax.scan(lambda state, token: _token(rates, state, _widen(token, state.dtype)), state, rows)
    return _join(out, tokens[0].shape), last


def _forward(rates: jax.Array | None, state: jax.Array, tokens: Tokens) -> tuple[Any, Any]:
    def body(state: jax.Array, chunk: Any) -> tuple[jax.Array, Any]:
        after, out = jax.lax.scan(lambda h, token: _token(rates, h, token), state, _widen(chunk, state.dtype))
        return after, (out, state)

    last, (out, boundaries) = jax.lax.scan(body, state, jax.tree.map(_split, tokens))
    return (_join(out, tokens[0].shape), last), (rates, tokens, boundaries)


def _backward(residuals: Any, cotangents: Any) -> tuple[jax.Array | None, jax.Array, Any]:
    rates, tokens, boundaries = residuals
    d_out, d_last = cotangents

    def body(carry: tuple[jax.Array, jax.Array | None], inputs: Any) -> tuple[Any, Any]:
        d_state, d_rates = carry
        before, chunk, d_out = inputs
        d_state, d_more, d_chunk = _chunk_gradient(rates, before, _widen(chunk, before.dtype), d_out, d_state)
        return (d_state, jax.tree.map(jnp.add, d_rates, d_more)), d_chunk

    inputs = (boundaries, jax.tree.map(_split, tokens), _split(d_out))
    start = (d_last, jax.tree.map(jnp.zeros_like, rates))
    (d_state, d_rates), d_chunks = jax.lax.scan(body, start, inputs, reverse=True)
    return d_rates, d_state, (*(_join(d, a.shape).astype(a.dtype) for d, a in zip(d_chunks, tokens)), None)


_recurrence.define(_forward, _backward)


def _chunk_gradient(
    rates: jax.Array | None, before: jax.Array, chunk: Tokens, d_out: jax.Array, d_after: jax.Array
) -> tuple[jax.Array, jax.Array | None, tuple[jax.Array, ...]]:
    """Cotangents of the state before a chunk, of the rates and of its tokens' x, delta, B and C, from those of the
    state after it and of its outputs.
    """
    x, delta, b, c, starts = chunk
    entering = delta * x
    factors = _factors(rates, delta, b)

    def recur(state: jax.Array, token: Any) -> tuple[jax.Array, tuple[jax.Array, jax.Array | None]]:
        factor, entry, b, starts = token
        decayed = _reset(starts, factor * state)
        # The derivative of an exponential needs only its product; that of another factor needs the state it multiplied.
        return decayed + b[..., None] * entry[..., None, :], (decayed, _reset(starts, state) if rates is None else None)

    def recur_back(d_state: jax.Array, token: Any) -> tuple[jax.Array, jax.Array]:
        factor, c, d_out, starts = token
        d_state = d_state + c[..., None] * d_out[..., None, :]
        return _reset(starts, d_state * factor), d_state

    _, (decayed, read) = jax.lax.scan(recur, before, (factors, entering, b, starts))
    d_before, d_states = jax.lax.scan(recur_back, d_after, (factors, c, d_out, starts), reverse=True)

    d_b = jnp.einsum("trnc,trc->trn", d_states, entering)
    d_c = jnp.einsum("trnc,trc->trn", decayed, d_out) + b * jnp.sum(entering * d_out, axis=-1, keepdims=True)

    def accumulate(sums: Any, n: jax.Array) -> tuple[Any, jax.Array]:
        d_entering, d_delta = sums
        pick = lambda a, axis: jax.lax.dynamic_index_in_dim(a, n, axis, keepdims=False)  # noqa: E731
        d_state, one_b = pick(d_states, -2), pick(b, -1)
        d_entering = d_entering + d_state * one_b[..., None]
        if rates is None:
            d_factor = d_state * pick(read, -2)
            d_delta = d_delta - d_factor * jnp.square(one_b)[..., None]
            return (d_entering, d_delta), -2 * one_b * jnp.sum(d_factor * delta, axis=-1)
        d_exponent = d_state * pick(decayed, -2)
        d_delta = d_delta + d_exponent * pick(rates, -2)
        return (d_entering, d_delta), jnp.sum(d_exponent * delta, axis=(0, 1) if rates.shape[0] == 1 else 0)

    zeros = jnp.zeros_like(entering)
    state_dim = b.shape[-1]
    (d_entering, d_delta), by_state = jax.lax.scan(
        accumulate, (zeros, zeros), jnp.arange(state_dim), unroll=math.gcd(state_dim, UNROLL)
    )
    by_state = jnp.moveaxis(by_state, 0, -1 if rates is None else -2)
    if rates is None:
        d_b = d_b + by_state
    d_rates = None if rates is None else by_state.reshape(rates.shape)
    return d_before, d_rates, (d_entering * delta, d_delta + d_entering * x, d_b, d_c)


def _split(a: jax.Array) -> jax.Array:
    """(batch, length, groups, ...) to (chunks, chunk, rows, ...), padded with zeros: a step of 0 leaves the state
    unchanged.
    """
    a = jnp.pad(a, ((0, 0), (0, -a.shape[1] % CHUNK), (0, 0), (0, 0)))
    return jnp.moveaxis(a, 1, 0).reshape(-1, CHUNK, a.shape[0] * a.shape[2], a.shape[3])


def _join(a: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The inverse of :func:`_split`; ``shape`` is (batch, length, groups, ...)."""
    batch, length, groups, _ = shape
    return jnp.moveaxis(a.reshape(-1, batch, groups, a.shape[-1])[:length], 0, 1)
